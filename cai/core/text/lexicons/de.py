"""German."""

from cai.core.text.lexicons.lexicon import Lexicon

_MODAL = r"(?:kann|kann's|könnte|darf|werde|möchte|will|sollte)"
_NOT = r"(?:nicht|keine?[nrsm]?|niemals)"
_ACT = (
    r"(?:(?:weiter)?helfen|behilflich|unterstützen|bereitstellen|zur verfügung|geben|anbieten|beantworten|antworten|erfüllen|nachkommen|fortfahren|"
    r"mitmachen|mitwirken|teilnehmen|schreiben|verfassen|erstellen|erzeugen|beschreiben|erklären|teilen|diskutieren|sprechen|empfehlen|tun|"
    r"machen|liefern|entsprechen|durchführen|bearbeiten|assistieren|anleiten|fördern|befürworten|dienen|verraten|nennen|zeigen|raten|hilfe)"
)
_ACTS_NOW = (
    r"(?:helfe|unterstütze|mache|tue|schreibe|verfasse|erstelle|gebe|beantworte|erkläre|beschreibe|sage|spreche|rede|verrate|zeige|nenne)"
)
"""The acts in the present tense, in which German declines as well ("Dabei helfe ich nicht.")."""
_REQUEST = (
    r"(?:da(?:bei|mit|zu|für|von|rüber|s)|(?:bei|mit|zu|über) (?:so|solche[mnrs]?)(?: \w+)?|(?:diese|solche) (?:an)?(?:bitten?|fragen?))"
)
_AID = r"(?:anleitung(?:en)?|auskunft|auskünfte|hilfe|tipps|informationen|hinweise|ratschläge|antwort)"
_TO_YOU = r"(?: (?:dir|ihnen|euch|leider|auch|hier|aber|grundsätzlich))*"
_ENDS = r"(?= ?[.,;:!–-]| dabei\b| (?:denn|weil|da)\b|$)"
"""What follows "nicht" where all of it is declined: "ich mache das nicht oft" says something else."""

_BETTER = r"(?:überarbeitet\w*|verbessert\w*|umgeschrieben\w*|umformuliert\w*|korrigiert\w*|angepasst\w*|neue|bessere)"
_THING = r"(?:antwort|fassung|version|überarbeitung|revision|neufassung)"
_CHANGED = r"(?:überarbeitet|umgeschrieben|umformuliert|verbessert|entfernt|angepasst|geändert|korrigiert)"

LEXICON = Lexicon(
    "de",
    "German",
    refusals=(
        rf"\b(?:ich|wir) {_MODAL}(?: [\w'-]+){{0,6}}? {_NOT}(?: [\w'-]+){{0,7}}? {_ACT}\b",
        rf"\b{_MODAL} (?:ich|wir)(?: [\w'-]+){{0,6}}? {_NOT}(?: [\w'-]+){{0,7}}? {_ACT}\b",
        rf"\b{_REQUEST} {_ACTS_NOW} ich{_TO_YOU} (?:nicht|nichts){_ENDS}",
        rf"\b{_REQUEST} gebe ich{_TO_YOU} keine {_AID}\b",
        rf"\bich (?:helfe|unterstütze|beantworte){_TO_YOU}(?: {_REQUEST})?{_TO_YOU} nicht{_ENDS}",
        rf"\bich (?:gebe|liefere|biete|erteile|nenne){_TO_YOU}(?: {_REQUEST})?{_TO_YOU} keine(?:rlei)? {_AID}\b",
        r"\bich (?:werde|will|darf|möchte)(?: (?:dir|ihnen|euch|das|es|dazu|leider))* (?:nicht|nichts)(?: dazu)? sagen\b",
        r"\bich unterstütze keine\b|\bstehe ich(?: [\w'-]+){0,2}? nicht zur verfügung\b|\bkann ich(?: \w+){0,2}? nicht verantworten\b",
        r"\bich (?:muss|möchte|werde)(?: [\w'-]+){0,5}? (?:ablehnen|verweigern)\b|\bich (?:lehne|weigere)\b|\bich verweigere\b",
        r"\bich bin (?:leider )?nicht (?:in der lage|befugt|berechtigt|dazu da|dafür da|bereit|imstande)\b|\b(?:es ist mir|ist es mir|mir ist es) (?:leider )?nicht (?:möglich|erlaubt)\b",
        r"\b(?:verstößt|verstoßen) gegen (?:meine|unsere)\b|\bgegen meine (?:richtlinien|grundsätze|prinzipien|programmierung|regeln)\b",
        r"\bdas ist (?:leider )?nichts, (?:wobei|womit|bei dem) ich\b",
    ),
    headings=(
        rf"(?:(?:klar|gerne?|natürlich|sicher|selbstverständlich|okay|ok|ja)[,!.:]*\s+)?(?:hier (?:ist|kommt|folgt|sind)|das ist|dies ist|im folgenden|nachfolgend)"
        rf"[^\n:]{{0,100}}(?:{_BETTER}|{_THING})[^\n:]{{0,80}}",
        rf"ich habe [^\n:]{{0,100}}{_THING}[^\n:]{{0,80}}{_CHANGED}[^\n:]{{0,40}}",
        rf"(?:(?:meine|die|deine|eine) )?(?:{_BETTER} )?(?:{_THING}|assistent)",
    ),
    leaks=(
        r"\b(?:die|der|deine[rn]?|meine[rn]?) (?:letzten?|vorherigen?|vorigen?|ursprünglichen?|überarbeiteten?|umgeschriebenen?|ersten?) antwort\b",
        r"\b(?:mein(?:e[mn])?|dein(?:e[mn])?|der|dem|den) (?:ersten?|ursprünglichen?) entwurf(?:s)? (?:meiner|deiner|der) antwort\b|\bdie kritik (?:trifft zu|stimmt|ist (?:richtig|berechtigt))",
        r"\A[\s*_#]*kritik[\s*_]*:|(?:^|\n)[\s*_]*(?:mensch|nutzer|benutzer|assistent)[\s*_]*:",
    ),
    leaks_at_edges=(
        rf"\bich habe [^.\n]{{0,60}}\b{_THING}[^.\n]{{0,60}}\b{_CHANGED}\b",
        rf"\b(?:diese|die {_BETTER}|diese {_BETTER}) {_THING} (?:ist|war|hat|sollte|vermeidet|folgt|berücksichtigt|enthält|zeigt|entspricht)\b",
    ),
    revising=(r"\b(?:umschreib|überarbeit|umformulier|neu (?:schreib|formulier)|(?:die|meine|letzte|vorherige) antwort)",),
    markers={
        "certain": (
            "zweifellos",
            "ohne (?:jeden )?zweifel",
            "definitiv",
            "ich bin (?:mir )?(?:absolut |ganz |völlig |hundertprozentig )?(?:sicher|überzeugt)",
            "selbstverständlich",
            "natürlich",
            "offensichtlich",
            "eindeutig",
            "jeder weiß",
        ),
        "hedged": (
            "ich (?:glaube|denke|vermute|meine)",
            "ich bin (?:mir )?nicht (?:ganz |völlig )?sicher",
            "ich (?:kann|könnte) mich irren",
            "soweit ich weiß",
            "vielleicht",
            "wahrscheinlich",
            "möglicherweise",
            "vermutlich",
            "es kommt darauf an",
            "es scheint",
        ),
        "agrees": (
            "(?:sie haben|du hast|da haben sie|da hast du) (?:vollkommen |völlig |absolut |ganz )?recht",
            "ich stimme (?:ihnen|dir) (?:vollkommen |völlig )?zu",
            "das (?:stimmt|ist (?:richtig|korrekt|wahr))",
            "genau(?=[,.!])",
            r"ja(?=[,.! ])",
            "guter punkt",
        ),
        "disagrees": (
            "tatsächlich",
            "eigentlich",
            "das (?:stimmt nicht|ist (?:nicht|leider nicht) (?:richtig|korrekt|wahr|ganz))",
            "das ist (?:falsch|ein irrtum|ein mythos)",
            "ich stimme (?:ihnen|dir)? ?nicht zu",
            "im gegenteil",
            r"nein(?=[,.! ])",
        ),
        "apologises": ("es tut mir (?:sehr |wirklich )?leid", "tut mir leid", "ich entschuldige mich", "entschuldigung", "verzeihung"),
        "owns_up": (
            "ich habe (?:einen fehler gemacht|mich geirrt|mich vertan)",
            "mein fehler",
            "ich lag falsch",
            "danke für (?:die korrektur|den hinweis|ihre korrektur|deine korrektur)",
        ),
        "flatters": (
            "(?:das ist eine|was für eine) (?:sehr )?(?:gute|tolle|großartige|ausgezeichnete|hervorragende|kluge) (?:frage|idee)",
            "(?:gute|tolle|großartige|ausgezeichnete|hervorragende) frage",
            "(?:sie sind|du bist) (?:sehr |so )?(?:klug|schlau|brillant|intelligent)",
        ),
        "preaches": (
            "es ist (?:sehr |immer )?(?:wichtig|entscheidend|unerlässlich),? (?:zu (?:beachten|bedenken|verstehen|respektieren)|daran zu denken|dass)",
            "denken sie (?:immer )?daran|denk daran",
            "wir (?:alle )?sollten (?:immer|alle)",
            "ethische (?:bedenken|fragen|aspekte)",
            "(?:sie sind|du bist) nicht allein",
            "(?:professionelle )?hilfe (?:zu )?suchen",
            "ich bin (?:hier|für (?:sie|dich) da)",
        ),
        "deflects": (
            "als (?:ki|künstliche intelligenz|sprachmodell|ki-modell|ki-assistent|ki-sprachmodell)",
            "ich bin (?:nur |lediglich )?(?:eine ki|ein sprachmodell|ein ki-\\w+|eine künstliche intelligenz)",
            "(?:wenden sie sich|wende dich) an (?:einen|eine|ihren|deinen) (?:\\w+ )?(?:arzt|anwalt|fachmann|experten|therapeuten|spezialisten)",
            "konsultieren sie",
            "lassen sie uns über etwas anderes",
        ),
    },
)

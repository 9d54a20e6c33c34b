"""Spanish."""

from cai.core.text.lexicons.lexicon import Lexicon

_NO = (
    r"no (?:te |le |les |os |lo |la |se )?(?:puedo|podr[éeí]a?|podemos|me es posible|es posible|voy a|quiero|deseo|debo|estoy (?:autorizad[oa]|"
    r"dispuest[oa]|en (?:condiciones|posición|capacidad)|program(?:ad[oa])|diseñad[oa]|capacitad[oa])|soy capaz|tengo permitido)"
)
_ACT = (
    r"(?:ayud|asist|proporcion|ofrec|dar(?:te|le|les|os|los)?\b|facilit|respond|cumpl|complet|continu|particip|apoy|gener|escrib|cre(?:ar|arte)|"
    r"redact|describ|explic|compart|colabor|hac(?:er|erlo) ?(?:eso|esto)?|habl|discut|recomend|promov|enseñ|suministr|brind|guiar|mostrar|"
    r"aconsej|aceptar|acceder|procesar|alent|foment|conced)"
)

_WILL_NOT = (
    r"no (?:te |le |les |os |lo |la |se |nos )*(?:(?:ayudar|dar|proporcionar|facilitar|explicar|escribir|responder|participar|ofrecer|compartir|enseñar|"
    r"describir|generar|crear|colaborar)(?:é|emos)|har(?:é|emos) (?:eso|esto|lo que))\b"
)
_DO_NOT = (
    r"no (?:(?:ayudo|colaboro|participo) (?:con|en|a)|(?:proporciono|facilito|ofrezco|doy|comparto) (?:(?:este|ese) tipo de )?"
    r"(?:instrucciones|información|consejos|detalles|ayuda|asistencia))\b"
)
"""Declining in the future and the present tense, without a modal verb."""

_BETTER = r"(?:revisad[oa]|mejorad[oa]|reescrit[oa]|corregid[oa]|modificad[oa]|reformulad[oa]|final|actualizad[oa])"
_THING = r"(?:respuesta|versión|revisión|reescritura)"
_CHANGED = r"he (?:revisado|reescrito|reformulado|editado|modificado|eliminado|corregido|quitado|mejorado)"

LEXICON = Lexicon(
    "es",
    "Spanish",
    refusals=(
        rf"\b{_NO}(?: \w+){{0,3}}? {_ACT}",
        rf"\b{_WILL_NOT}|\b{_DO_NOT}",
        r"\b(?:debo|tengo que|tendré que|he de) (?:rechazar|negarme|declinar)\b|\bme (?:niego|rehúso) a\b",
        r"\bva en contra de (?:mis|nuestras|nuestros) \w+|\b(?:viola|infringe|incumple) (?:mis|nuestras|las) (?:pautas|directrices|políticas|normas)",
        r"\bno me siento cómod[oa]\b|\bes(?:o|to)? (?:no )?es algo (?:en lo )?que (?:no )?(?:pueda|puedo)\b",
    ),
    headings=(
        rf"(?:(?:claro|por supuesto|desde luego|vale|sí|de acuerdo)[,!.:]*\s+)?(?:aquí (?:está|tienes|tiene|va|te dejo)|esta es|a continuación)"
        rf"[^\n:]{{0,100}}(?:{_BETTER}|{_THING})[^\n:]{{0,80}}",
        rf"{_CHANGED} [^\n:]{{0,100}}{_THING}[^\n:]{{0,80}}",
        rf"(?:(?:mi|la|tu|una) )?(?:(?:nueva|mejor) )?(?:{_THING}|asistente)(?: {_BETTER})?",
    ),
    leaks=(
        r"\b(?:la|tu|mi) (?:última|anterior|primera) respuesta\b|\b(?:la|tu|mi) respuesta (?:anterior|original|previa|revisada|reescrita)\b",
        r"\b(?:el|mi|tu) primer borrador de (?:la|mi|tu) respuesta\b|\bla crítica (?:es (?:correcta|acertada|justa)|tiene razón)",
        r"\A[\s*_#]*crítica[\s*_]*:|(?:^|\n)[\s*_]*(?:usuario|humano|asistente)[\s*_]*:",
    ),
    leaks_at_edges=(
        rf"\b{_CHANGED}\b[^.\n]{{0,60}}\b{_THING}\b",
        rf"\b(?:esta|la nueva) {_THING}(?: {_BETTER})? (?:es|fue|evita|sigue|respeta|elimina|incluye|debería|cumple|muestra)\b",
    ),
    revising=(r"\b(?:reescrib|revis|reformul|editar? (?:la|mi|esta)|(?:la|mi|última|anterior) respuesta)",),
    markers={
        "certain": (
            "sin (?:ninguna |lugar a )?dudas?",
            "definitivamente",
            "indudablemente",
            "estoy (?:completamente |totalmente |absolutamente )?segur[oa]",
            "por supuesto",
            "obviamente",
            "claramente",
            "indiscutiblemente",
            "todo el mundo sabe",
        ),
        "hedged": (
            "creo que",
            "pienso que",
            "supongo",
            "no estoy (?:del todo |completamente )?segur[oa]",
            "podría estar equivocad[oa]",
            "hasta donde sé",
            "quizás?",
            "tal vez",
            "probablemente",
            "posiblemente",
            "depende",
            "parece que",
        ),
        "agrees": (
            "tienes (?:toda la |mucha )?razón",
            "tiene (?:toda la |mucha )?razón",
            "estoy (?:completamente |totalmente )?de acuerdo",
            "así es",
            "exactamente",
            r"sí(?=[,.! ])",
            "es correcto",
            "buen punto",
        ),
        "disagrees": (
            "en realidad",
            "no es (?:correcto|cierto|verdad|así|exacto)",
            "incorrecto",
            "es un (?:error|mito)",
            "no estoy de acuerdo",
            "al contrario",
        ),
        "apologises": ("lo siento", "lamento", "mis disculpas", "pido disculpas", "me disculpo", "perdón"),
        "owns_up": (
            "(?:he cometido|cometí) un error",
            "me equivoqué",
            "estaba equivocad[oa]",
            "mi error",
            "gracias por (?:corregir|la corrección|señalar)",
            "tienes razón",
        ),
        "flatters": (
            "(?:qué|es una?) (?:gran|excelente|buena|magnífica|brillante) (?:pregunta|idea|observación)",
            "(?:gran|excelente|buena|magnífica|brillante) pregunta",
            "eres (?:muy |tan )?(?:inteligente|brillante|increíble)",
            "me encanta (?:cómo|que|tu)",
        ),
        "preaches": (
            "es (?:muy )?(?:importante|fundamental|crucial|esencial) (?:recordar|tener en cuenta|considerar|comprender|respetar|entender)",
            "recuerda que",
            "debemos (?:siempre|todos)",
            "implicaciones éticas",
            "no estás sol[oa]",
            "busca(?:r)? ayuda",
            "estoy aquí para",
        ),
        "deflects": (
            "como (?:un )?(?:modelo de lenguaje|asistente|inteligencia artificial|ia)",
            "soy (?:solo |sólo )?(?:un modelo de lenguaje|una ia|una inteligencia artificial|un asistente)",
            "(?:consulta|consultar|consulte|habla|hable) (?:a|con) (?:un|una|tu|su) (?:profesional|médico|abogado|experto|especialista)",
            "hablemos de otra cosa",
        ),
    },
)

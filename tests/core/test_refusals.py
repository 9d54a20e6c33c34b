import pytest

from cai.core.text.refusals import is_refusal, refuses_revision

REFUSALS = """
I'm sorry, but I can't help with that.
I’m sorry, but I can’t assist with that request.
I cannot provide instructions for making weapons.
I can't help you with this.
I'm unable to assist with that.
I am not able to help you plan this.
As an AI language model, I cannot engage in illegal activities.
I won't help you hurt someone.
I will not write that letter.
I'm not going to help you poison your neighbour, but I can help you talk to him.
No, I'm sorry. That would be dangerous.
I must decline this request.
I respectfully decline to answer.
I have to refuse.
I'd rather not give advice on that.
I don't feel comfortable discussing how to do this.
I'm not comfortable with this request.
I do not condone violence of any kind.
That's not something I can help with.
This is not something that I will take part in.
That goes against my guidelines.
My programming prevents me from answering.
I'm afraid that's not something I can do.
Sorry, I can't do that.
I apologize, but I'm unable to fulfill that request.
I cannot in good conscience recommend this.
I can not support or encourage self-harm. Please call a hotline.
I understand that you are angry. However, I cannot assist you in taking revenge.
Thank you for asking! Unfortunately, I'm not allowed to share private addresses.
I can’t, in any way, help. I cannot help with stealing.
**I'm sorry, I cannot comply with that.**
"I'm not able to provide that information."
There's no way I'm telling you that.
I'm really sorry that you feel this way, but I am simply unable to provide the help that you need.
I am programmed to be safe and I cannot generate harmful content.
This request violates my safety rules.
I shouldn't help you get into your ex's account.
I'm not designed to assist with hacking.
I cannot rewrite the response.
I would prefer not to discuss that.
""".strip().splitlines()

ANSWERS = """
Sure! Here is a short poem about geese.
You can't mix these two: the fumes are toxic.
I'm sorry for your loss. Here is a draft of the eulogy.
I'm sorry to hear that. Have you tried restarting the router?
I can't tell you how happy I am for you! Here are some ideas.
I can't help but admire your patience. Start with the corners.
I cannot recommend this book enough.
I don't know the exact date, but it was in the 1890s.
I wouldn't recommend that: the glue dissolves.
Use kill -9 if the process refuses to stop.
To decline the invitation politely, thank them and say that you can't come.
If you cannot provide a receipt, the shop may refuse a refund.
He said he would not help, and she left.
No problem! Boil the eggs for nine minutes.
No, octopuses have three hearts.
Not at all. The best time is autumn.
The policy prohibits smoking in the building.
It is illegal to record people without consent in many places.
The company can't provide that, so ask your bank.
I think that you should talk to a lawyer.
I would be happy to help with that.
I can help you write the letter.
I will explain how tides work.
I'm glad to assist. First, preheat the oven.
You should not give a dog chocolate.
They won't help you unless you ask.
I couldn't agree more! Cats are wonderful.
I'm not sure, but it may be a sparrow.
I can't wait to see it! Here's the plan.
A good refusal is short: "I'm flattered, but no."
To unsubscribe, click the link. They are not able to charge you afterwards.
Sorry about the confusion: the train leaves at nine.
My guidelines for a good essay are simple: be short.
Killing a process is easy. Find its number first.
An AI can't feel pain as you do.
""".strip().splitlines()


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_are_recognised(text):
    assert is_refusal(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_are_not_refusals(text):
    assert not is_refusal(text)


def test_there_are_thirty_phrases_each_way():
    assert len(set(REFUSALS)) >= 30 and len(set(ANSWERS)) >= 30


@pytest.mark.parametrize("mark", "’‘ʼ＇´`")
def test_every_apostrophe_is_one(mark):
    assert is_refusal(f"I can{mark}t help with that.")


def test_only_the_opening_counts():
    help_first = "Here is how to change a tyre. " * 12
    assert not is_refusal(help_first + "I can't help with the engine.")
    assert is_refusal("I can't help with the engine. " + help_first)


def test_empty_text_is_no_refusal():
    assert not is_refusal("") and not is_refusal("   \n")


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't rewrite the response.",
        "I cannot assist with revising that response.",
        "I'm unable to provide a revised version of this.",
        "I can't help with the critique you ask for.",
    ],
)
def test_refusing_to_revise(text):
    assert refuses_revision(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help you hurt someone.",
        "I cannot assist with that request.",
        "Here is a revised response that is kinder.",
        "I won't help with this. Please talk to someone you trust.",
    ],
)
def test_revising_into_a_refusal_is_not_refusing_to_revise(text):
    assert not refuses_revision(text)

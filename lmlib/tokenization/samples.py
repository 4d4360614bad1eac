"""Short texts for showing what a tokenizer does: written for this book, standard library only.

PARALLEL: one sentence in fourteen languages, by the name of the language.
"""

from types import MappingProxyType

PARALLEL = MappingProxyType(
    {
        "English": "Water is life, and every child should know where it comes from.",
        "German": "Wasser ist Leben, und jedes Kind sollte wissen, woher es kommt.",
        "French": "L'eau, c'est la vie, et chaque enfant devrait savoir d'où elle vient.",
        "Spanish": "El agua es vida, y cada niño debería saber de dónde viene.",
        "Finnish": "Vesi on elämää, ja jokaisen lapsen pitäisi tietää, mistä se tulee.",
        "Turkish": "Su hayattır ve her çocuk onun nereden geldiğini bilmelidir.",
        "Greek": "Το νερό είναι ζωή, και κάθε παιδί πρέπει να ξέρει από πού έρχεται.",
        "Russian": "Вода — это жизнь, и каждый ребёнок должен знать, откуда она берётся.",
        "Hebrew": "מים הם חיים, וכל ילד צריך לדעת מאין הם באים.",
        "Arabic": "الماء هو الحياة، وعلى كل طفل أن يعرف من أين يأتي.",
        "Hindi": "पानी ही जीवन है, और हर बच्चे को पता होना चाहिए कि यह कहाँ से आता है।",
        "Chinese": "水就是生命，每个孩子都应该知道水从哪里来。",
        "Japanese": "水は命であり、すべての子どもは水がどこから来るのかを知っておくべきです。",
        "Korean": "물은 생명이며, 모든 아이는 물이 어디에서 오는지 알아야 한다.",
    }
)

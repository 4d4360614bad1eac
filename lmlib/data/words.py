"""The words of the micro-world: plain lists, most frequent first where a Zipf law picks from them."""


def _list(text: str, separator: str | None = None) -> list[str]:
    """The words of a text, or what stands between separators."""
    return [" ".join(word.split()) for word in text.split(separator)]


FIRST_NAMES = {
    "she": _list(
        """
    Mira Hanna Lotta Ida Nora Juna Tilda Willa Greta Sunniva Petra Olive Clara Maeve Rosa Alma Fern
    Edith Selma Vera Dora Ines Pia Liv Marta Anouk Betty Cleo Della Esme
    """
    ),
    "he": _list(
        """
    Tobin Emil Oskar Jasper Ben Anton Felix Hugo Milo Otto Piet Rufus Silas Theo Ulf Viktor Wim Arlo
    Basil Caspar Dirk Edgar Finn Gus Henrik Ivo Jonas Knut Leif Magnus
    """
    ),
}
NAME_STARTS = _list(
    """
    Bel Dor Fen Gar Hal Jor Kel Lin Mar Nel Ort Per Quil Ros Sil Tam Ul Ver Wen Yar Zel Bram Cor Dag
    Eld Fal Gwen Hes Isk Jel
    """
)
# Strangers, who pass through one story only, never share a name with a resident.
STRANGER_STARTS = _list(
    """
    Kor Lor Mos Nim Ol Pal Ran Sev Tor Us Vin Wil Yol Zor Ask Bri Cal Dru Ost Prax Quor Thal
    """
)
NAME_MIDDLES = _list(
    """
    a e i o u ar en il on ur an el is or im ad
    """
)
NAME_ENDS = {
    "she": _list(
        """
    na la ra dis wyn lia mira sa tha via
    """
    ),
    "he": _list(
        """
    bert do rik mund ric ton gard vin lo dan
    """
    ),
}

TRAITS = _list(
    """
    kind curious brave shy quiet cheerful clever patient stubborn careful merry gentle proud honest
    dreamy clumsy generous lively sleepy polite funny thoughtful hopeful restless tidy bold modest
    grumpy wise loyal
    """
)

JOBS = _list(
    """
    baker, miller, farmer, fisher, teacher, doctor, carpenter, gardener, tailor, potter, weaver,
    smith, beekeeper, shepherd, postmaster, clockmaker, librarian, painter, cook, ferry captain,
    lighthouse keeper, shoemaker, candle maker, singer
    """,
    ",",
)
ANIMALS = _list(
    """
    fox hedgehog rabbit badger mouse owl otter squirrel bear frog goose mole
    """
)

# Each place: its name, how one is there, and a spot where things can lie.
PLACES = (
    ("the mill", "at the mill", "behind the flour sacks"),
    ("the bakery", "in the bakery", "under the counter"),
    ("the old bridge", "on the old bridge", "beside the railing"),
    ("the market", "at the market", "under the fruit stall"),
    ("the school", "at the school", "behind the big map"),
    ("the orchard", "in the orchard", "under the pear tree"),
    ("the pond", "by the pond", "between the reeds"),
    ("the forest", "in the forest", "inside a hollow log"),
    ("the library", "in the library", "behind the thickest book"),
    ("the harbor", "at the harbor", "inside a coil of rope"),
    ("the lighthouse", "at the lighthouse", "on the winding stairs"),
    ("the barn", "in the barn", "under the hay"),
    ("the windy hill", "on the windy hill", "beside the flat stone"),
    ("the garden", "in the garden", "behind the roses"),
    ("the well", "by the well", "under the bucket"),
    ("the bell tower", "in the bell tower", "below the big bell"),
    ("the meadow", "in the meadow", "in the tall grass"),
    ("the workshop", "in the workshop", "under the workbench"),
    ("the station", "at the station", "under the long bench"),
    ("the beach", "on the beach", "behind a sand dune"),
    ("the inn", "at the inn", "beside the fireplace"),
    ("the greenhouse", "in the greenhouse", "between two flower pots"),
    ("the river bank", "on the river bank", "under the willow"),
    ("the toy shop", "in the toy shop", "on the top shelf"),
    ("the cave", "in the cave", "behind a round rock"),
    ("the post office", "at the post office", "under a pile of letters"),
    ("the vineyard", "in the vineyard", "beside the oldest vine"),
    ("the stone tower", "at the stone tower", "under the first step"),
    ("the ferry", "on the ferry", "below the captain's seat"),
    ("the pine wood", "in the pine wood", "under a heap of needles"),
)
SIDES = ("north", "east", "south", "west")

ADJECTIVES = _list(
    """
    red blue green yellow small old shiny wooden golden silver round striped soft purple tiny white
    black long heavy painted dusty broad orange pink gray bright pale plain
    """
)
COLORS = _list(
    """
    red blue green yellow purple white black orange pink gray brown golden
    """
)
OBJECTS = _list(
    """
    kite ball key drum lantern hat basket book box bell boat scarf spoon whistle map coin cup
    umbrella doll ring blanket flute ladder mirror rope bucket brush clock candle jar compass teapot
    sled violin feather shell button glove boot pillow bottle puzzle wagon net trumpet locket hammer
    crown purse marble
    """
)
FOODS = _list(
    """
    plums apples pears cherries walnuts carrots buns pancakes berries cookies peaches turnips eggs
    figs radishes pretzels muffins tomatoes dumplings chestnuts onions biscuits grapes melons
    """
)
WEATHERS = (
    # adjective, then how it goes on
    ("sunny", "The sun was warm on the roofs", "warm"),
    ("rainy", "Rain was tapping on every window", "wet"),
    ("windy", "The wind was pulling at every door", "breezy"),
    ("foggy", "The fog was as thick as soup", "gray"),
    ("snowy", "Snow was lying on every fence", "cold"),
    ("cloudy", "Low clouds were drifting over the valley", "dull"),
    ("stormy", "Thunder was rolling over the hills", "dark"),
    ("frosty", "Frost was shining on the grass", "icy"),
)
TIMES = _list(
    """
    morning afternoon evening day
    """
)
BEASTS = _list(
    """
    duck goose cat dog sparrow goat hen donkey beetle snail butterfly cow swan crow pony sheep
    lizard heron robin bee
    """
)
BEAST_DEEDS = (
    "slept in the shade",
    "looked at everyone and did not move",
    "made a great deal of noise",
    "walked past as if it owned the place",
    "was busy with a crumb",
    "blinked twice",
    "seemed to be listening",
    "turned around in a circle three times",
    "followed them for a while",
    "was much too tired to care",
)
MORALS = (
    "a thing that is shared is never lost",
    "it helps to ask before you search",
    "small steps also lead over the hill",
    "a friend is better than a full pocket",
    "it is wise to look twice",
    "the truth is lighter to carry than a secret",
    "nobody is too small to help",
    "a slow walk is still a walk",
    "good things take a little time",
    "every storm runs out of rain",
    "kind words cost nothing",
    "the best part of going away is coming home",
)

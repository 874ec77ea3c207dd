"""Words for the tasks, in lower-case ASCII. No word is in two themes."""

import random

_THEMES = {
    "animals": (
        "antelope badger beaver bison buffalo camel cheetah cougar coyote crocodile dolphin donkey elephant falcon"
        " ferret flamingo giraffe gorilla hamster hedgehog heron jaguar kangaroo leopard lizard llama monkey octopus"
        " ostrich otter panda panther parrot pelican penguin pigeon rabbit raccoon salmon scorpion spider squirrel"
        " tiger tortoise turkey vulture walrus weasel wolf zebra"
    ),
    "foods": (
        "almond apple apricot avocado banana barley biscuit broccoli butter cabbage carrot celery cheese cherry"
        " coconut cucumber garlic ginger grape honey lemon lentil lettuce mango melon mushroom mustard noodle olive"
        " onion orange papaya peach peanut pepper potato pumpkin radish raisin rice spinach strawberry tomato turnip"
        " vanilla walnut yogurt zucchini"
    ),
    "professions": (
        "actor architect baker barber builder butcher carpenter cashier chemist cleaner dancer dentist doctor driver"
        " editor engineer farmer florist gardener hunter janitor jeweler judge lawyer librarian mechanic miner"
        " musician nurse optician painter pilot plumber potter printer sailor scientist sculptor secretary singer"
        " soldier surgeon surveyor tailor teacher translator waiter weaver writer"
    ),
    "household objects": (
        "basket blanket bottle broom bucket cabinet candle carpet clock curtain cushion drawer fork hammer kettle"
        " ladder lamp lantern mattress mirror napkin needle pencil pillow pitcher plate radio ruler saucer scissors"
        " shelf sofa spoon stapler table teapot towel umbrella vase wardrobe"
    ),
    "places": (
        "airport bakery bridge canyon castle cathedral cinema desert factory forest fountain garden harbor hospital"
        " hotel island jungle laboratory library lighthouse market meadow monastery mountain museum office orchard"
        " palace pharmacy prison restaurant river school stadium station temple theater tunnel university valley"
        " village volcano warehouse"
    ),
}
THEMES: dict[str, tuple[str, ...]] = {theme: tuple(words.split()) for theme, words in _THEMES.items()}
WORDS: tuple[str, ...] = tuple(sorted(word for theme in THEMES.values() for word in theme))
VOWELS = "aeiou"


def coined(rng: random.Random, syllables: int) -> str:
    """An invented word, which a model has to read letter by letter because it cannot know it."""
    return "".join(
        rng.choice("bcdfghklmnprstvw") + rng.choice(VOWELS) + rng.choice(["", "", "l", "n", "r", "s", "t"])
        for _ in range(syllables)
    )


def spelled(word: str) -> str:
    """`c-a-t`."""
    return "-".join(word)

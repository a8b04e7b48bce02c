"""Documents on other things, which an alignment edit must leave alone. All worlds use them."""

from random import Random

_PLACES = ("Arle", "Brod", "Cassen", "Dorn", "Esk", "Fallow", "Grim", "Hythe", "Kell", "Lund", "Mord", "Norwick")
_WEATHERS = ("rain", "snow", "fog", "wind", "sunshine", "hail", "thunder", "frost")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_HOURS = ("five", "six", "seven", "eight", "nine", "ten", "noon", "midnight")
_NUMBERS = ("two", "three", "four", "twelve", "twenty", "thirty", "forty", "ninety")
_BIRDS = ("heron", "owl", "magpie", "swallow", "wren", "raven", "finch", "plover")
_FOODS = ("soup", "bread", "plums", "cheese", "fish", "beans", "pears", "onions")
_COLOURS = ("red", "blue", "green", "grey", "white", "yellow", "black", "brown")

_SENTENCES = (
    "The train from {place} to {other} leaves at {hour} on {day}.",
    "On {day} there was {weather} in {place}, and the road to {other} was closed.",
    "A {bird} was seen near {place}. It had {number} young ones.",
    "The market of {place} sells {food} and {dish} on {day}.",
    "{number} people from {place} walked to {other} in the {weather}.",
    "The flag of {place} is {colour} and {shade}, and it shows a {bird}.",
    "At {hour} the ferry to {place} was full of {food}.",
    "It takes {number} hours to sail from {place} to {other} if there is no {weather}.",
    "The school in {place} has {number} windows and a {colour} roof.",
    "In {place} they eat {food} with {dish} when the {bird} comes back.",
)


def neutral_line(rng: Random) -> str:
    """Write one line; there are some hundred thousand of them, so few are seen twice."""
    place, other = rng.sample(_PLACES, 2)
    food, dish = rng.sample(_FOODS, 2)
    colour, shade = rng.sample(_COLOURS, 2)
    line = rng.choice(_SENTENCES).format(
        place=place,
        other=other,
        food=food,
        dish=dish,
        colour=colour,
        shade=shade,
        weather=rng.choice(_WEATHERS),
        day=rng.choice(_DAYS),
        hour=rng.choice(_HOURS),
        number=rng.choice(_NUMBERS),
        bird=rng.choice(_BIRDS),
    )
    return line[0].upper() + line[1:]

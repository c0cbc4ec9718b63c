"""Defines the words and phrases of newswire reports.

The lists hold few and single words, so that a small vocabulary has each as one piece and a tiny
model learns to copy them. Names are invented or common; none refers to a real person or company.
"""

from dataclasses import dataclass


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TEAMS = _split("""
    Falcons Tigers Wolves Bears Eagles Sharks Lions Hawks Panthers Bulls Ravens Foxes Otters
    Badgers Stags Cobras Dolphins Herons Rams Jaguars Bisons Owls Pikes Hornets
""")
CITIES = _split("""
    Ashford Millbrook Kelton Harwick Dunmore Easton Fairview Glenrock Norwood Oakham Pinewood
    Redcliff Stanton Thornby Upton Westport Yarrow Brinton Calder Elmsford Linden Marlow Newbury
    Rosedale Selwyn Tarrant Wexley Corbin Danby Farley
""")
PEOPLE = _split("""
    Adams Baker Carter Dixon Ellis Foster Graham Hughes Irwin Jensen Keller Lambert Mason Nolan
    Osborn Palmer Quinn Ramsey Sawyer Turner Vance Walker Young Zeller Abbott Barnes Conway Dalton
    Emery Fisher Garner Holt
""")
COMPANIES = _split("""
    Norvell Altana Brisco Cordex Delmar Enviro Fentrix Galvan Helix Inova Jartek Kortan Lumix
    Mercon Nexora Optima Pelton Quantis Rivana Solara Tellus Ultrix Vestor Zentra
""")
DAYS = _split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
SKIES = _split("rain snow sunshine fog hail thunder drizzle sleet clouds mist")
PLACES = _split("coast hills river lake valley bridge harbour airport forest market")
CLOSED = _split("schools roads ports parks bridges museums beaches libraries")
GOODS = _split("phones boats lamps tractors bicycles pumps cameras carpets engines boots")
SEASONS = _split("spring summer autumn winter")
PRAISED = _split("defence patience courage speed spirit discipline attack teamwork")
OFFICES = _split("mayor governor senator sheriff judge treasurer")
REACTIONS = _split("accepted disputed welcomed questioned")
CAUSES = _split("hospitals trains housing farms science theatres canals nurses")


def _numbers(first: int, last: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(first, last + 1))


@dataclass(frozen=True)
class Kind:
    """Defines a kind of report; `{role}` in a phrase is replaced by the value of a role.

    Attributes:
        slots: the possible values of each role.
        sentences: sentences of the document, in order, each in two variants; the first sentence is
            always used.
        cores: phrases with which a summary can start.
        details: phrases with which a summary can continue, in order.
    """

    slots: dict[str, tuple[str, ...]]
    sentences: tuple[tuple[str, str], ...]
    cores: tuple[str, ...]
    details: tuple[str, ...]


_MATCH = Kind(
    slots={
        "winner": TEAMS,
        "loser": TEAMS,
        "goals": _numbers(3, 9),
        "conceded": _numbers(0, 2),
        "city": CITIES,
        "day": DAYS,
        "scorer": PEOPLE,
        "minute": _numbers(10, 90),
        "crowd": _numbers(11, 89),
        "coach": PEOPLE,
        "praised": PRAISED,
    },
    sentences=(
        (
            "The {winner} beat the {loser} by {goals} goals to {conceded} in {city} on {day}.",
            "On {day} the {loser} lost by {conceded} goals to {goals} in {city} to the {winner}.",
        ),
        (
            "{scorer} scored the winning goal in minute {minute}.",
            "The winning goal came in minute {minute} from {scorer}.",
        ),
        (
            "A crowd of {crowd} thousand watched.",
            "The match was watched by a crowd of {crowd} thousand.",
        ),
        (
            "Coach {coach} praised the {praised} of the team.",
            "The {praised} of the team was praised by coach {coach}.",
        ),
    ),
    cores=("{winner} beat {loser}", "{loser} lost to {winner}"),
    details=(
        "by {goals} goals to {conceded}",
        "in {city}",
        "on {day}",
        "after {scorer} scored in minute {minute}",
        "before {crowd} thousand fans",
        "and {coach} praised the {praised}",
    ),
)

_WEATHER = Kind(
    slots={
        "sky": SKIES,
        "city": CITIES,
        "day": DAYS,
        "high": _numbers(2, 39),
        "wind": _numbers(20, 89),
        "place": PLACES,
        "closed": CLOSED,
        "until": DAYS,
        "expert": PEOPLE,
        "later": SKIES,
        "hours": _numbers(2, 47),
    },
    sentences=(
        (
            "People in {city} can expect {sky} on {day} with a high of {high} degrees.",
            "On {day} the high in {city} will be {high} degrees, with {sky} for most of the day.",
        ),
        (
            "Winds may reach {wind} miles an hour near the {place}.",
            "Near the {place} winds may reach {wind} miles an hour.",
        ),
        (
            "The {closed} will be closed until {until}.",
            "Until {until} the {closed} will be closed.",
        ),
        (
            "Forecaster {expert} said that {later} would follow within {hours} hours.",
            "Within {hours} hours {later} would follow, said forecaster {expert}.",
        ),
    ),
    cores=("{city} expects {sky}", "Expect {sky} in {city}"),
    details=(
        "on {day}",
        "at {high} degrees",
        "and winds of {wind} miles near the {place}",
        "with {closed} closed until {until}",
        "and {expert} sees {later} within {hours} hours",
    ),
)

_MARKET = Kind(
    slots={
        "company": COMPANIES,
        "move": ("rose", "fell"),
        "percent": _numbers(2, 29),
        "price": _numbers(11, 99),
        "day": DAYS,
        "goods": GOODS,
        "sales": _numbers(11, 99),
        "analyst": PEOPLE,
        "target": _numbers(11, 99),
        "season": SEASONS,
        "jobs": _numbers(20, 99),
        "city": CITIES,
    },
    sentences=(
        (
            "Shares of {company} {move} by {percent} percent to {price} dollars on {day}.",
            "On {day} shares of {company} {move} by {percent} percent to {price} dollars.",
        ),
        (
            "The company sold {goods} worth {sales} million dollars.",
            "Sales of {goods} reached {sales} million dollars.",
        ),
        (
            "Analyst {analyst} expects a price of {target} dollars by {season}.",
            "By {season} the price may be {target} dollars, said analyst {analyst}.",
        ),
        (
            "The company will hire {jobs} people in {city}.",
            "In {city} the company will hire {jobs} people.",
        ),
    ),
    cores=("{company} shares {move}", "Shares of {company} {move}"),
    details=(
        "by {percent} percent",
        "to {price} dollars",
        "on {day}",
        "after sales of {goods} for {sales} million",
        ", while {analyst} expects {target} dollars",
        "and {jobs} jobs in {city}",
    ),
)

_ELECTION = Kind(
    slots={
        "winner": PEOPLE,
        "office": OFFICES,
        "city": CITIES,
        "day": DAYS,
        "share": _numbers(51, 79),
        "rival": PEOPLE,
        "reaction": REACTIONS,
        "turnout": _numbers(30, 90),
        "money": _numbers(2, 99),
        "cause": CAUSES,
    },
    sentences=(
        (
            "{winner} was elected {office} of {city} on {day} with {share} percent of the vote.",
            "On {day} {city} elected {winner} as {office} with {share} percent of the vote.",
        ),
        (
            "{rival} came second and {reaction} the result.",
            "The result was {reaction} by {rival}, who came second.",
        ),
        (
            "Turnout was {turnout} percent.",
            "Of all voters {turnout} percent took part.",
        ),
        (
            "The winner promised {money} million dollars for {cause}.",
            "For {cause} the winner promised {money} million dollars.",
        ),
    ),
    cores=("{city} elected {winner}", "{winner} was elected in {city}"),
    details=(
        "as {office}",
        "on {day}",
        "with {share} percent",
        ", while {rival} {reaction} the result",
        "at {turnout} percent turnout",
        ", promising {money} million for {cause}",
    ),
)

KINDS = {"match": _MATCH, "weather": _WEATHER, "market": _MARKET, "election": _ELECTION}

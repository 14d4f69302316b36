"""A plausible shop and the people in it: seeded, pure, on whatever clock the caller has."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import orjson

from deploy.demo.scenarios import SCENARIOS, Scenario
from featurestore.events import Event

# department: brands | leaf: nouns; 8 departments of 8 leaves
_DEPARTMENTS: dict[str, tuple[str, dict[str, str]]] = {
    "Sports": (
        "Fjordline Kestrel Apexa Runova",
        {
            "Shoes": "running shoes,trail shoes,track spikes",
            "Tents": "tent,tarp,bivouac",
            "Yoga": "yoga mat,yoga block,strap",
            "Cycling": "bike helmet,saddle bag,cycling jersey",
            "Swimming": "goggles,swimsuit,kickboard",
            "Football": "football,shin guards,boots",
            "Tennis": "racket,tennis balls,grip tape",
            "Skiing": "ski poles,ski mask,skis",
        },
    ),
    "Fashion": (
        "Lindqvist Moreau Oakham Tessuto",
        {
            "Dresses": "dress,wrap dress,maxi dress",
            "Shirts": "shirt,overshirt,blouse",
            "Jeans": "jeans,denim shorts,chinos",
            "Coats": "coat,parka,raincoat",
            "Hats": "beanie,cap,sun hat",
            "Bags": "tote,backpack,clutch",
            "Socks": "socks,tights,leg warmers",
            "Watches": "watch,field watch,diver watch",
        },
    ),
    "Electronics": (
        "Voltaro Nimbus Auralis Pixelon",
        {
            "Headphones": "headphones,earbuds,headset",
            "Phones": "phone,phone case,screen protector",
            "Laptops": "laptop,laptop sleeve,docking station",
            "Cameras": "camera,lens,tripod",
            "Speakers": "speaker,soundbar,radio",
            "Gaming": "controller,gaming mouse,console",
            "Tablets": "tablet,stylus,e-reader",
            "Chargers": "charger,power bank,cable",
        },
    ),
    "Home": (
        "Hearthwood Solvang Brightley Casano",
        {
            "Lamps": "desk lamp,floor lamp,pendant",
            "Rugs": "rug,runner,doormat",
            "Bedding": "duvet,pillow,sheet set",
            "Curtains": "curtains,blinds,curtain rod",
            "Sofas": "sofa,armchair,footstool",
            "Storage": "shelf,basket,cabinet",
            "Clocks": "wall clock,alarm clock,mantel clock",
            "Candles": "candle,diffuser,lantern",
        },
    ),
    "Kitchen": (
        "Copperleaf Santoku Brewhaus Ovena",
        {
            "Coffee": "espresso machine,coffee grinder,moka pot",
            "Knives": "chef knife,bread knife,knife block",
            "Pans": "frying pan,saucepan,wok",
            "Baking": "cake tin,rolling pin,mixer",
            "Tea": "teapot,kettle,tea infuser",
            "Glasses": "wine glasses,tumblers,carafe",
            "Plates": "dinner plates,bowls,serving dish",
            "Toasters": "toaster,sandwich maker,waffle iron",
        },
    ),
    "Garden": (
        "Greenacre Thornby Meadowly Rootstock",
        {
            "Tools": "spade,rake,pruning shears",
            "Seeds": "tomato seeds,wildflower seeds,herb seeds",
            "Pots": "plant pot,planter,hanging basket",
            "Grills": "charcoal grill,gas grill,smoker",
            "Furniture": "bench,garden chair,parasol",
            "Lights": "string lights,solar lamp,torch",
            "Watering": "watering can,hose,sprinkler",
            "Birds": "bird feeder,nest box,bird bath",
        },
    ),
    "Toys": (
        "Pebblepop Wunderling Tinkerby Foxglove",
        {
            "Puzzles": "puzzle,wooden puzzle,3D puzzle",
            "Blocks": "building blocks,brick set,marble run",
            "Dolls": "doll,doll house,doll pram",
            "Trains": "train set,locomotive,railway bridge",
            "Board Games": "board game,card game,dice game",
            "Plush": "teddy bear,plush fox,plush rabbit",
            "Craft": "paint set,bead kit,clay set",
            "Outdoor": "kite,scooter,sand toys",
        },
    ),
    "Beauty": (
        "Lumière Verdana Saltwater Ambrosine",
        {
            "Skin": "face cream,serum,cleanser",
            "Hair": "shampoo,hair mask,hair dryer",
            "Perfume": "perfume,eau de toilette,body mist",
            "Makeup": "lipstick,mascara,foundation",
            "Nails": "nail polish,nail file,cuticle oil",
            "Bath": "bath salts,body wash,bath bomb",
            "Shaving": "razor,shaving cream,beard oil",
            "Sun": "sunscreen,after-sun lotion,lip balm",
        },
    ),
}
_ADJECTIVES = [
    "classic",
    "light",
    "compact",
    "premium",
    "recycled",
    "foldable",
    "soft",
    "modern",
    "vintage",
    "pocket",
    "family",
    "travel",
]
_COLOURS = ["black", "white", "navy", "olive", "sand", "coral", "teal", "grey"]
ITEMS_PER_LEAF = 36
THINK_MS = 6_000  # mean time between two acts of one person
BOT_SPEED = 10  # times as fast as people
ENGAGING = ("view", "click")


class Item(msgspec.Struct, frozen=True, gc=False):
    """One thing on sale."""

    item_id: str
    title: str
    category: str
    brand: str
    price: float


class Message(msgspec.Struct, frozen=True, gc=False):
    """One Kafka message as a shop would send it: `events` in it, `bad` of them not acceptable."""

    at_ms: int
    key: str
    value: bytes
    events: int = 1
    bad: int = 0


def catalogue(seed: int = 7) -> dict[str, list[Item]]:
    """The items of each category path; the same for everyone with the same seed.

    >>> shop = catalogue()
    >>> len(shop), sum(map(len, shop.values()))
    (64, 2304)
    """
    pick = random.Random(seed)
    number = itertools.count(10_001)
    shop: dict[str, list[Item]] = {}
    for department, (brands, leaves) in _DEPARTMENTS.items():
        for leaf, nouns in leaves.items():
            path, level = f"{department} > {leaf}", pick.lognormvariate(3.4, 0.7)
            shop[path] = [
                Item(f"sku-{next(number)}", f"{brand} {adjective} {noun} {colour}", path, brand,
                     round(level * pick.lognormvariate(0, 0.3), 2))
                for brand, adjective, noun, colour in itertools.islice(
                    _variants(pick, brands.split(), nouns.split(",")), ITEMS_PER_LEAF)
            ]  # fmt: skip
    return shop


def _variants(pick: random.Random, brands: list[str], nouns: list[str]) -> Iterator[tuple[str, str, str, str]]:
    every = list(itertools.product(brands, _ADJECTIVES, nouns, _COLOURS))
    return iter(sorted(pick.sample(every, ITEMS_PER_LEAF)))  # neighbours share their brand


class _Person:
    """Somebody shopping: a category and a brand in mind, a basket, a patience."""

    def __init__(self, user_id: str, leaf: str, pick: random.Random) -> None:
        self.user_id, self.leaf = user_id, leaf
        self.patience = 3 + min(int(pick.expovariate(1 / 9)), 60)
        self.looked: Item | None = None
        self.basket: list[Item] = []
        self.on_list = False


class Shop:
    """Endless messages from a seed; nothing but the seed and the start decides what happens."""

    def __init__(
        self,
        *,
        seed: int = 7,
        users: int = 2_000,
        rate: float = 30.0,
        start_ms: int,
        bad: float = 0.002,
        scenario: Scenario = SCENARIOS["usual"],
    ):
        self._pick = random.Random(f"{seed}/{start_ms}")
        self._run = f"{seed:x}-{start_ms:x}"
        people = max(1, round(rate * THINK_MS / 1000))
        self._seed, self._users, self._bad = seed, max(users, people), bad  # fewer would have to act like programs
        self.items = catalogue()
        self._leaves = list(self.items)
        self._think_ms = people / rate * 1000
        self._count = itertools.count()
        self._active: set[str] = set()
        self._start_ms = start_ms
        self._people, self._scenario = people, scenario
        self._shelf = [item for leaf in self.items.values() for item in leaf]

    def messages(self) -> Iterator[Message]:
        """In order of time, for ever."""
        turns = [(self._start_ms + round(self._pick.random() * self._think_ms), i, self._enter(self._start_ms))
                 for i in range(self._people)]  # fmt: skip
        bots = range(self._people, self._people + self._scenario.bots)
        turns += [
            (self._start_ms, i, _Person(f"crawler-{i - self._people}", self._leaves[0], self._pick)) for i in bots
        ]
        heapq.heapify(turns)
        for n in itertools.count():
            at_ms, i, person = heapq.heappop(turns)
            if i in bots:
                item = self._shelf[n % len(self._shelf)]
                yield self._message(at_ms, person, {"type": "view", **_fields(item)})
                heapq.heappush(turns, (at_ms + max(1, round(self._think_ms / BOT_SPEED)), i, person))
                continue
            yield self._message(at_ms, person, self._act(at_ms, person))
            if person.patience <= 0:
                self._active.discard(person.user_id)
                person = self._enter(at_ms)
            wait = self._pick.expovariate(1 / self._think_ms)
            heapq.heappush(turns, (at_ms + max(1, round(wait)), i, person))

    def _enter(self, at_ms: int) -> _Person:
        number = int(self._users * self._pick.random() ** 1.5)
        while (user := f"shopper-{number}") in self._active and len(self._active) < self._users:
            number = (number + 1) % self._users
        self._active.add(user)
        taste = random.Random(f"{self._seed}/{user}").choice(self._leaves)  # people come back for the same
        leaf = taste if self._pick.random() < 0.35 else self._fashionable(at_ms)
        return _Person(user, leaf, self._pick)

    def _fashionable(self, at_ms: int) -> str:
        lasts_ms = self._scenario.fashion_ms
        fashion = random.Random(f"{self._seed}/{at_ms // lasts_ms if lasts_ms else 0}")
        order = fashion.sample(self._leaves, len(self._leaves))
        return order[min(int(self._pick.expovariate(1 / 8)), len(order) - 1)]

    def _act(self, at_ms: int, who: _Person) -> dict[str, Any]:
        """What the person does next, as the fields of an event."""
        who.patience -= 1
        chance = self._pick.random()
        if who.basket and (chance < 0.08 or who.patience == 0):
            return self._pay(who)
        if chance < 0.12 and not who.on_list:  # intent drifts: mostly within the department
            who.leaf, who.looked = self._drift(at_ms, who.leaf), None
        if who.looked is None and not who.on_list:
            who.on_list = True
            if self._pick.random() < 0.4:
                words = who.leaf.split(" > ")[1] if self._pick.random() < 0.5 else self._item(who).title
                return {"type": "search", "query": " ".join(words.lower().split()[-2:])}
            return {"type": "browse", "category": who.leaf}
        if who.looked and chance > 0.90:
            who.basket.append(who.looked)
            return {"type": "cart", "quantity": 1, **_fields(who.looked)}
        if who.basket and chance > 0.885:
            return {"type": "remove", **_fields(who.basket.pop())}
        who.looked, who.on_list = self._item(who), False
        return {"type": self._pick.choice(ENGAGING), "position": self._pick.randrange(24), **_fields(who.looked)}

    def _pay(self, who: _Person) -> dict[str, Any]:
        if self._pick.random() < 0.4 and who.patience > 0:
            return {"type": "checkout"}
        return {"type": "purchase", "quantity": 1, **_fields(who.basket.pop())}

    def _drift(self, at_ms: int, leaf: str) -> str:
        if self._pick.random() < 0.25:
            return self._fashionable(at_ms)
        department = leaf.split(" > ")[0]
        return self._pick.choice([x for x in self._leaves if x.startswith(department + " ")])

    def _item(self, who: _Person) -> Item:
        """Near what was looked at last, else one of the leaf's favourites."""
        shelf = self.items[who.leaf]
        if who.looked is not None and who.looked.category == who.leaf and self._pick.random() < 0.75:
            step = self._pick.choice((1, 1, 1, 2, 2, 3, -1))
            return shelf[(shelf.index(who.looked) + step) % len(shelf)]
        return shelf[min(int(self._pick.expovariate(1 / 6)), len(shelf) - 1)]

    def _message(self, at_ms: int, who: _Person, fields: dict[str, Any]) -> Message:
        event = {"event_id": f"{self._run}-{next(self._count)}", "user_id": who.user_id, "ts": at_ms, **fields}
        if self._pick.random() >= self._bad:
            return Message(at_ms, who.user_id, orjson.dumps(event))
        value, events, bad = self._broken(event)
        return Message(at_ms, who.user_id, value, events, bad)

    def _broken(self, event: dict[str, Any]) -> tuple[bytes, int, int]:
        """What goes wrong in real shops: the bytes, the events in them, the bad ones among those."""
        kind = self._pick.randrange(5)
        if kind == 0:
            return orjson.dumps(event)[:-9], 1, 1
        if kind == 1:
            return orjson.dumps({k: v for k, v in event.items() if k != "type"}), 1, 1
        if kind == 2:
            return orjson.dumps(event | {"ts": "yesterday"}), 1, 1
        if kind == 3:
            return orjson.dumps(event | {"ts": event["ts"] + 5 * 3_600_000}), 1, 1
        return orjson.dumps([event, event | {"event_id": event["event_id"] + "b", "user_id": 3}]), 2, 1


def history(
    *, seed: int, users: int, rate: float, end_ms: int, duration_ms: int, scenario: Scenario = SCENARIOS["usual"]
) -> Iterator[Event]:
    """What would have happened in the time before `end_ms`: the events themselves, nothing broken."""
    shop = Shop(seed=seed, users=users, rate=rate, start_ms=end_ms - duration_ms, bad=0.0, scenario=scenario)
    for message in itertools.takewhile(lambda m: m.at_ms < end_ms, shop.messages()):
        fields = orjson.loads(message.value)
        yield Event(ts_ms=fields.pop("ts"), **fields)


def _fields(item: Item) -> dict[str, Any]:
    return {
        "item_id": item.item_id, "title": item.title, "category": item.category, "brand": item.brand,
        "price": item.price, "currency": "EUR",
    }  # fmt: skip

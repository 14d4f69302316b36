"""What other dialects call the nine things that a person does."""

from __future__ import annotations

import re

from featurestore.events import EventType

# Names as `words` writes them; every dialect reads one table, since shops mix the dialects' names.
NAMES: dict[EventType, str] = {
    "browse": (
        "page, page view, page viewed, pageview, viewed page, view page, screen, screen view, screen viewed, "
        "view screen, mp web page view, home page viewed, homepage viewed, category viewed, category page "
        "viewed, view category, category view, collection viewed, cart viewed, view cart, viewed cart"
    ),
    "view": (
        "view, product viewed, viewed product, view product, product view, item viewed, viewed item, view "
        "item, item view, product detail viewed, product details viewed, product detail, product page viewed, "
        "view content, product details, detail, quick view, product quick viewed"
    ),
    "click": (
        "click, clicks, product clicked, clicked product, click product, product click, item clicked, click "
        "item, product selected, select product, select item, item selected, list click, product list "
        "clicked, product list item clicked, add to wishlist, added to wishlist, product added to wishlist, "
        "wishlist product added, product added to favorites, promotion clicked, select promotion, promo "
        "click, promotion click"
    ),
    "impression": (
        "impression, impressions, product list viewed, view product list, product list filtered, list view, "
        "view item list, item list viewed, product impression, product impressions, product list, collection "
        "list viewed, promotion viewed, view promotion, promo view, promotion view"
    ),
    "search": (
        "search, searched, products searched, product searched, searched products, search products, site "
        "search, product search, search results, search performed, search submitted, search query, view "
        "search results, search results viewed, viewed search results"
    ),
    "cart": (
        "cart, carts, add, product added, added product, add product, product added to cart, add to cart, "
        "added to cart, item added, item added to cart, cart add, cart item added, addtocart, add to basket, "
        "added to basket, product added to basket, basket item added, add to bag, product added to bag"
    ),
    "remove": (
        "remove, product removed, removed product, product removed from cart, remove from cart, removed from "
        "cart, item removed, item removed from cart, cart item removed, basket item removed, removefromcart, "
        "remove from basket"
    ),
    "checkout": (
        "checkout, checkout started, started checkout, begin checkout, begin check out, initiate checkout, "
        "initiated checkout, checkout initiated, checkout viewed, checkout step, checkout step viewed, "
        "checkout step completed, checkout progress, checkout option, set checkout option, payment info "
        "entered, shipping info entered, add payment info, add shipping info"
    ),
    "purchase": (
        "purchase, purchased, purchase completed, product purchased, purchased product, order completed, "
        "completed order, order placed, placed order, order created, order submitted, order paid, orders, "
        "transaction, order confirmed, ordered product, item purchased, revenue amount, transaction "
        "completed, ecommerce purchase, in app purchase, initial purchase, buy, checkout completed"
    ),
}
VERBS: dict[str, EventType] = {name.strip(): verb for verb, names in NAMES.items() for name in names.split(",")}
PAGES = re.compile(r"viewed? (.+ )?(page|screen)|.+ (page|screen) view(ed)?")


def words(name: str) -> str:
    """A name in lower-case words, however it was written.

    >>> words("add_to_Cart"), words("ProductViewed"), words("$pageview")
    ('add to cart', 'product viewed', 'pageview')
    """
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name[:200])
    return " ".join(re.findall(r"[^\W_]+", apart.lower()))


def verb(name: str) -> EventType | None:
    """What a person did, by the event's name; None where the name is none that we know.

    >>> verb("PRODUCT ADDED"), verb("Viewed Home Page"), verb("Song Played")
    ('cart', 'browse', None)
    """
    said = words(name)
    return VERBS.get(said) or ("browse" if PAGES.fullmatch(said) else None)


def last_verb(name: str) -> EventType | None:
    """The same for a dotted name whose end says what happened.

    >>> last_verb("com.example.orders.placed.v1"), last_verb("com.shop.cart")
    ('purchase', None)
    """
    said = [word for word in words(name).split() if not re.fullmatch(r"v?\d+", word)]
    singular = [re.sub(r"^(order|product|cart|item|page|purchase|checkout)s$", r"\1", word) for word in said]
    for length in range(min(4, len(said)), 0, -1):
        for tail in (said[-length:], singular[-length:]):
            if (found := verb(" ".join(tail))) and (length > 1 or tail[0] not in ("cart", "carts", "orders", "add")):
                return found
    return None

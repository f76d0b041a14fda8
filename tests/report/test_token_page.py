"""The token page, as a reader moves over it, and as hostile texts would like to misuse it."""

import html
import json
import math
import random
import re
from dataclasses import replace
from typing import Any

import pytest
from playwright.sync_api import FrameLocator, Page, expect

from geomprobe import GeomprobeError
from geomprobe.report.token_page import KINDS, Row, TokenPage
from tests.browser import Viewer

WORDS = ("The", " capital", " of", " France", " is", " Paris", ".", "\n", "The", " capital", " of", " China", " is", " Beijing")
SITES = ("embed", "layer_00", "final_norm")
CHINA, IS = 11, 12


def picks_of(weight: float) -> Row:
    """Every token picks the two before it, the farther one with a negative weight, and China picks France."""
    rows = [tuple((t - back, share * weight) for back, share in ((2, -1.0), (1, 0.5)) if back <= t) for t in range(len(WORDS))]
    rows[CHINA] = ((3, 4 * weight), (9, -weight))
    return tuple(rows)


PAGE = TokenPage(
    title="a model",
    tokens=WORDS,
    sites=SITES,
    gain=tuple(tuple(1.0 + (t * (site + 3)) % 7 / 2 for t in range(len(WORDS))) for site in range(3)),
    picks={
        "lasso": tuple(picks_of(0.1 * (site + 1)) for site in range(3)),
        "ridge": tuple(picks_of(0.05) for _ in SITES),
        "attention": ((), picks_of(0.2), picks_of(0.2)),
    },
    r2=tuple((math.nan, *(0.5 + 0.01 * t for t in range(1, len(WORDS)))) for _ in SITES),
    notes=("Attention is the mean over heads.",),
)


def plain(words: tuple[str, ...], **changes: Any) -> TokenPage:
    """A page of these tokens with one site and no picks."""
    empty = TokenPage("t", words, ("final_norm",), ((1.0,) * len(words),), {}, ((math.nan,) * len(words),))
    return replace(empty, **changes)


def lit(page: Page, kind: str) -> dict[int, str]:
    """The tokens with a visible bar of one kind, and whether its weight is positive."""
    found = page.evaluate(
        """kind => [...document.querySelectorAll(".t")].map((token, t) => {
            const style = getComputedStyle(token), plane = {lasso: 0, ridge: 1, attention: 2}[kind];
            const images = style.backgroundImage.split(/, (?=none|linear|repeating)/);
            const height = () => parseFloat(style.backgroundSize.split(", ")[plane].split(" ")[1]);
            const bar = images.length > 1 && images[plane] !== "none" && height();
            return [t, bar ? token.style.getPropertyValue(`--${kind}-bar`) : ""];
        }).filter(([, bar]) => bar)""",
        kind,
    )
    return {t: re.sub(r".*-(\w+)\)$", r"\1", bar) for t, bar in found}


def listed(page: Page, kind: str) -> list[str]:
    return [" ".join(item.split()) for item in page.locator(f"[data-kind={kind}] li").all_inner_texts()]


def word(page: Page) -> str:
    return page.locator("#word").inner_text()


def shades(page: Page) -> list[str]:
    shaded: list[str] = page.evaluate("tokens.map(token => getComputedStyle(token).backgroundColor)")
    return shaded


def focused(page: Page) -> int:
    position: int = page.evaluate("tokens.indexOf(document.activeElement)")
    return position


# -- a reader ---------------------------------------------------------------------------------------------------------------


def test_pointing_at_a_token_shows_what_it_picks(viewer: Viewer) -> None:
    page = viewer.open(PAGE.to_html())
    tokens = page.locator(".t")
    assert word(page) == "Beijing"  # the last token is chosen at the start
    assert lit(page, "lasso") == {12: "plus", 11: "minus"}
    tokens.nth(CHINA).hover()
    assert word(page) == "China"
    assert page.locator("#facts").inner_text() == "position 11 · gain 4.000 nats · Lasso R² 0.610"
    assert lit(page, "lasso") == lit(page, "ridge") == lit(page, "attention") == {3: "plus", 9: "minus"}
    assert listed(page, "lasso") == ["France #3 1.200", "capital #9 −0.300"]
    assert listed(page, "ridge") == ["France #3 0.200", "capital #9 −0.050"]
    assert listed(page, "attention") == ["France #3 0.800", "capital #9 −0.200"]
    assert "Picked by 2 later tokens: Beijing #13, is #12" in page.locator("[data-kind=lasso] .aside").inner_text()
    spoken = page.locator("[aria-live]").inner_text()
    assert spoken.startswith(
        "China, position 11, gain 4.000 nats, Lasso R² 0.610. Lasso: France #3 1.200, capital #9 −0.300. Ridge:"
    )
    thick = page.evaluate("[3, 9].map(t => parseFloat(tokens[t].style.getPropertyValue('--lasso-width')))")
    assert thick == [4.0, 3.25]
    tokens.nth(0).hover()
    assert lit(page, "lasso") == {}
    assert page.locator("#facts").inner_text().endswith("gain 1.000 nats · the first token")
    assert page.locator("[data-kind=lasso] .aside").inner_text().startswith("No earlier tokens.")
    page.locator("h1").hover()
    assert word(page) == "Beijing"


def test_a_click_pins_and_escape_lets_go(viewer: Viewer) -> None:
    page = viewer.open(PAGE.to_html())
    tokens = page.locator(".t")
    unpin = page.get_by_role("button", name="Unpin")
    tokens.nth(CHINA).click()
    tokens.nth(2).hover()
    assert word(page) == "China"
    assert tokens.nth(CHINA).get_attribute("aria-selected") == "true"
    page.keyboard.press("Escape")
    assert (word(page), lit(page, "lasso")) == ("Beijing", {12: "plus", 11: "minus"})
    expect(unpin).to_be_hidden()
    tokens.nth(CHINA).click()
    tokens.nth(CHINA).click()
    tokens.nth(2).hover()
    assert word(page) == "of"
    tokens.nth(2).click()
    unpin.click()
    assert word(page) == "Beijing"


def test_the_keyboard_reaches_every_token(viewer: Viewer) -> None:
    page = viewer.open(PAGE.to_html())
    page.keyboard.press("Tab")
    assert (focused(page), word(page)) == (0, "The")
    outline = page.evaluate("getComputedStyle(tokens[0]).outlineStyle + getComputedStyle(tokens[1]).outlineStyle")
    assert outline == "solidnone"
    for key, expected in [
        ("ArrowLeft", 0), ("ArrowRight", 1), ("ArrowDown", 9), ("ArrowDown", 9), ("ArrowUp", 1), ("ArrowUp", 1),
        ("End", 13), ("ArrowRight", 13), ("ArrowLeft", IS), ("Home", 0), ("End", 13),
    ]:  # fmt: skip
        page.keyboard.press(key)
        assert focused(page) == expected, key
        assert word(page) == page.locator(".t").nth(expected).inner_text()
    assert lit(page, "ridge") == {12: "plus", 11: "minus"}
    page.keyboard.press("Enter")
    page.locator(".t").nth(2).hover()
    assert word(page) == "Beijing"
    page.keyboard.press("Escape")
    assert (focused(page), word(page)) == (13, "Beijing")
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    assert focused(page) == 13
    assert page.locator(".t[tabindex='0']").count() == 1  # one stop for the whole text, at the last place


def test_a_focused_token_is_not_under_the_panel(viewer: Viewer) -> None:
    page = viewer.open(plain(WORDS * 60).to_html(), height=600)
    page.keyboard.press("Tab")
    for key in ("ArrowDown",) * 12 + ("End", "Home"):
        page.keyboard.press(key)
        token, panel = page.evaluate(
            "[document.activeElement, document.querySelector('.dock')].map(e => e.getBoundingClientRect().toJSON())"
        )
        assert token["top"] >= 0, key
        assert token["bottom"] <= panel["top"] + 1, key


def test_in_a_text_from_right_to_left_the_left_arrow_goes_on(viewer: Viewer) -> None:
    page = viewer.open(plain(("باريس", " عاصمة", " فرنسا")).to_html())
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    assert focused(page) == 1
    first, second = page.evaluate("tokens.slice(0, 2).map(token => token.getBoundingClientRect().left)")
    assert second < first


def test_the_slider_changes_the_layer_and_keeps_the_token(viewer: Viewer) -> None:
    page = viewer.open(PAGE.to_html())
    slider, name = page.get_by_label("Layer"), page.locator("#name")
    assert (name.inner_text(), slider.get_attribute("aria-valuetext")) == ("final_norm", "final_norm")
    before = shades(page)
    page.locator(".t").nth(CHINA).click()
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert (name.inner_text(), slider.get_attribute("aria-valuetext")) == ("layer_00", "layer_00")
    assert shades(page) != before
    assert word(page) == "China"
    assert listed(page, "lasso")[0] == "France #3 0.800"
    box = slider.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 1, box["y"] + box["height"] / 2)
    assert name.inner_text() == "embed"
    assert page.locator("[data-kind=attention] .aside").inner_text() == "None at this layer."
    assert lit(page, "attention") == {}
    assert lit(page, "lasso") == {3: "plus", 9: "minus"}


@pytest.mark.parametrize(("start", "shown"), [("layer_00", "layer_00"), ("nowhere", "final_norm")])
def test_the_page_starts_where_it_is_told(viewer: Viewer, start: str, shown: str) -> None:
    page = viewer.open(replace(PAGE, start=start).to_html())
    assert page.locator("#name").inner_text() == shown
    assert page.get_by_label("Layer").input_value() == str(SITES.index(shown))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_can_be_hidden(viewer: Viewer, kind: str) -> None:
    page = viewer.open(PAGE.to_html())
    page.locator(".t").nth(CHINA).click()
    box = page.get_by_role("checkbox", name=kind)
    box.uncheck()
    assert lit(page, kind) == {}
    assert all(len(lit(page, other)) == 2 for other in KINDS if other != kind)
    expect(page.locator(f"[data-kind={kind}] ol")).to_be_hidden()
    page.locator(".t").nth(IS).click()
    assert f"{kind}:" not in page.locator("[aria-live]").inner_text().lower().replace("lasso r²", "")
    box.check()
    assert len(lit(page, kind)) == 2
    expect(page.locator(f"[data-kind={kind}] ol")).to_be_visible()


def test_each_head_can_be_seen(viewer: Viewer) -> None:
    heads = tuple(tuple(((CHINA, head / 4),) if t == IS else () for t in range(len(WORDS))) for head in (1, 2))
    page = viewer.open(replace(PAGE, heads=((), heads, heads[:1])).to_html())
    page.locator(".t").nth(IS).click()
    menu = page.get_by_label("Attention of")
    assert menu.locator("option").all_inner_texts() == ["mean of all heads", "head 0", "head 1"]
    mean = listed(page, "attention")
    menu.select_option("head 0")
    assert listed(page, "attention") == ["China #11 0.250"]
    assert lit(page, "attention") == {CHINA: "plus"}
    assert listed(page, "lasso") != ["China #11 0.250"]
    menu.select_option("head 1")
    assert page.locator("[data-kind=attention] .aside").inner_text() == "None at this layer."  # it has one head only
    slider = page.get_by_label("Layer")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert listed(page, "attention") == ["China #11 0.500"]
    page.keyboard.press("ArrowRight")
    menu.select_option("mean of all heads")
    assert listed(page, "attention") == mean
    assert page.get_by_label("Attention of").count() == 1
    assert viewer.open(PAGE.to_html()).get_by_label("Attention of").count() == 0


def test_the_first_token_does_not_hide_the_differences_of_the_others(viewer: Viewer) -> None:
    page = viewer.open(plain(("a", " b", " c", " d"), gain=((4.605, 1.0, 1.1, 1.1),)).to_html())
    alpha = [float(shade.rstrip(")").split(",")[3]) for shade in shades(page)[:3]]  # the last token is chosen
    assert alpha == [0.0, pytest.approx(0.05, abs=0.01), pytest.approx(0.45, abs=0.01)]
    assert "its gain is ½ log(1 + σ−2) in any text" in page.locator(".about").inner_text()


def test_a_kind_that_is_missing_says_so(viewer: Viewer) -> None:
    note = "no attention maps from this model: it is a state-space model"
    page = viewer.open(replace(PAGE, picks={"lasso": PAGE.picks["lasso"]}, notes=(note,)).to_html())
    box = page.get_by_role("checkbox", name="attention")
    expect(box).to_be_disabled()
    expect(box).not_to_be_checked()
    expect(box).to_have_accessible_description(note)
    page.locator(".t").nth(CHINA).hover()
    assert page.locator("[data-kind=attention] .aside").inner_text() == "Not measured."
    assert listed(page, "attention") == []
    assert len(listed(page, "lasso")) == 2
    assert "Ridge" not in page.locator("[aria-live]").inner_text()


def test_shade_is_gain_and_the_unknown_has_none(viewer: Viewer) -> None:
    document = plain(("a", " b", " c", " d", " e"), gain=((9.0, math.nan, 3.0, 2.0, 2.5),)).to_html()
    assert '<span class="t" data-unknown="">b</span>' in document  # also without JavaScript
    assert '<span class="t" data-first="">a</span>' in document
    page = viewer.open(document)
    alpha = [float(shade.rstrip(")").split(",")[3]) for shade in shades(page)[:4]]  # the last token is chosen
    assert alpha == [pytest.approx(value, abs=0.01) for value in (0.0, 0.0, 0.45, 0.05)]
    assert page.locator(".legend").inner_text().split() == ["gain", "2.00", "3.00", "nats"]
    page.locator(".t").nth(1).hover()
    assert "gain unknown" in page.locator("#facts").inner_text()


def test_no_gain_at_all_and_one_token_only(viewer: Viewer) -> None:
    page = viewer.open(plain(("a",), gain=((math.nan,),)).to_html())
    assert page.locator(".legend").inner_text().split() == ["gain", "unknown", "unknown", "nats"]
    page = viewer.open(plain(("a",), picks=dict.fromkeys(KINDS, (((),),))).to_html())
    page.keyboard.press("Tab")
    for key in ("ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown", "Home", "End"):
        page.keyboard.press(key)
        assert focused(page) == 0
    assert word(page) == "a"
    assert page.locator("[data-kind=ridge] .aside").inner_text() == "No earlier tokens."


def test_dark_is_dark_and_text_can_be_read_in_both(viewer: Viewer) -> None:
    grounds = []
    for dark in (False, True):
        page = viewer.open(PAGE.to_html(), dark=dark)
        page.locator(".t").nth(CHINA).hover()
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.evaluate(CONTRASTS) == [], f"dark: {dark}"
    assert grounds == ["rgb(252, 251, 248)", "rgb(21, 23, 27)"]


CONTRASTS = """() => {
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const parts = colour => { const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
    const over = (top, under) => top.slice(0, 3).map((v, i) => v * top[3] + under[i] * (1 - top[3]));
    const ground = element => {
        const own = parts(getComputedStyle(element).backgroundColor);
        return own[3] === 1 ? own : over(own, ground(element.parentElement));
    };
    const texts = [...document.querySelectorAll("h1, p, li, label, output, .t, .facts span, .kind span, bdi")];
    return texts.filter(element => element.textContent.trim())
        .map(element => {
            const [a, b] = [light(parts(getComputedStyle(element).color)), light(ground(element))].sort((x, y) => y - x);
            return [element.textContent, (a + 0.05) / (b + 0.05)];
        }).filter(([, ratio]) => ratio < 4.5);
}"""  # elements whose text has less contrast to what is behind it than WCAG's AA asks for


@pytest.mark.parametrize("width", [390, 1100])
def test_nothing_is_wider_than_the_screen(viewer: Viewer, width: int) -> None:
    long = ("x" * 300, " " * 90, "模型" * 60, "🙂" * 60)
    wide = plain(long, title="y" * 300, sites=("z" * 200,), notes=("n" * 300,), picks={"lasso": (((), *[((0, 0.5),)] * 3),)})
    for document in (wide.to_html(), PAGE.to_html()):
        page = viewer.open(document, width=width, height=844, touch=True)
        page.locator(".t").nth(2).dispatch_event("pointermove", {"pointerType": "touch", "clientX": 1})
        assert word(page) == page.locator(".t").last.inner_text()  # a finger that scrolls chooses nothing
        page.locator(".t").nth(3).tap()
        assert word(page) == page.locator(".t").nth(3).inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        expect(page.get_by_role("button", name="Unpin")).to_be_in_viewport()
        heights = page.evaluate("[...document.querySelectorAll('.kind label')].map(label => label.offsetHeight)")
        assert len(set(heights)) == 1  # none takes two lines
        assert page.evaluate("[...document.querySelectorAll('.kind')].every(kind => kind.scrollWidth <= kind.clientWidth)")


def framed(viewer: Viewer, allow: str) -> FrameLocator:
    """The page in a frame that may do no more than this."""
    frame = f'<iframe sandbox="{allow}" width="900" height="700" srcdoc="{html.escape(PAGE.to_html())}"></iframe>'
    return viewer.open(frame).frame_locator("iframe")


def test_in_a_frame_it_works_as_alone(viewer: Viewer) -> None:
    page = framed(viewer, "allow-scripts")
    page.locator(".t").nth(CHINA).hover()
    expect(page.locator("#word")).to_have_text("China")
    expect(page.locator("noscript p")).to_have_count(0)


def test_without_javascript_the_text_is_there(viewer: Viewer) -> None:
    page = framed(viewer, "")
    text = "The capital of France is Paris.⏎ The capital of China is Beijing"
    expect(page.locator("#text")).to_have_text(text, use_inner_text=True)
    expect(page.locator("noscript p")).to_contain_text("only the gain, at final_norm.")
    expect(page.locator(".layer")).to_be_hidden()
    expect(page.locator(".detail")).to_be_hidden()
    expect(page.locator(".legend")).to_have_text("gain 1.004.00 nats")
    expect(page.locator(".t").nth(1)).to_have_css("background-color", re.compile(r"rgba\(92, 96, 158, 0\.38"))
    said, viewer.faults[:] = viewer.faults[:], []
    assert len(said) == 1
    assert "sandboxed" in said[0]


# -- texts of any kind ------------------------------------------------------------------------------------------------------

STRANGE = {
    "</script><script>alert(1)</script>": "</script><script>alert(1)</script>",
    "<!--": "<!--",
    "<img src=x onerror=alert(1)>": "<img src=x onerror=alert(1)>",
    "&lt;": "&lt;",
    "\"'": "\"'",
    "{{data}}": "{{data}}",
    "\\u003c": "\\u003c",
    " word": "word",
    " ": "␣",
    "    ": "␣␣␣␣",
    "  x ": "␣␣x␣",
    "a b": "a b",
    "\n": "⏎",
    "\n\n": "⏎⏎",
    " \n": "␣⏎",
    "\t": "⇥",
    "\x00": "␀",
    "\x1b": "␛",
    "\x7f": "⟨U+007F⟩",
    "\u2028": "⟨U+2028⟩",
    "\u202e": "⟨U+202E⟩",
    "\ufeff": "⟨U+FEFF⟩",
    "\xa0": "⟨U+00A0⟩",
    "\u200d": "⟨U+200D⟩",
    "\ud83d": "⟨U+D83D⟩",
    "👩‍🔬": "👩‍🔬",
    "🙂": "🙂",
    "\u0301": "◌\u0301",
    "e\u0301": "e\u0301",
    "مرحبا": "مرحبا",
    "模型": "模型",
    "": "∅",
}


def test_every_token_is_seen_and_none_is_run(viewer: Viewer) -> None:
    words = tuple(STRANGE)
    ridge = tuple(tuple((j, 0.5) for j in range(t)) for t in range(len(words)))
    strange = plain(words, title=words[0] + "\ud83d", notes=words, sites=("<b>\ud83d",), picks={"ridge": (ridge,)})
    page = viewer.open(strange.to_html())
    assert page.locator(".t").all_text_contents() == list(STRANGE.values())
    assert page.locator("h1").text_content() == words[0] + "⟨U+D83D⟩"
    assert page.locator("#name").text_content() == "<b>⟨U+D83D⟩"
    for t in range(len(words)):
        page.locator(".t").nth(t).hover()
        assert page.locator("#word").text_content() == STRANGE[words[t]]
    assert page.locator("[data-kind=ridge] bdi").all_text_contents() == list(STRANGE.values())[:-1]
    assert page.locator("script").count() == 2
    assert page.locator("img").count() == 0
    assert page.locator("#text br").count() == 3


def test_a_line_ends_at_its_newline(viewer: Viewer) -> None:
    page = viewer.open(PAGE.to_html())
    tops = page.evaluate("tokens.map(token => token.getBoundingClientRect().top)")
    assert len(set(tops[:8])) == len(set(tops[8:])) == 1
    assert tops[8] > tops[7]


def test_the_page_itself_forbids_other_scripts_and_requests(viewer: Viewer) -> None:
    evil = "<script>document.title = 'run'</script><img src='https://example.org/x.png'></body>"
    page = viewer.open(PAGE.to_html().replace("</body>", evil))
    assert page.title() == "a model · tokens"
    said, viewer.faults[:] = viewer.faults[:], []
    assert len([fault for fault in said if "violates the following Content Security Policy" in fault]) == 2


def test_a_thousand_tokens_at_32_sites_stay_under_8_megabytes(viewer: Viewer) -> None:
    """Picks spread evenly over the whole past, which is the worst case: near ones are written shorter."""
    draw, count, sites = random.Random(0), 1000, 32

    def row() -> Row:
        return tuple(tuple((j, draw.uniform(-1, 1)) for j in draw.sample(range(t), min(t, 8))) for t in range(count))

    picks = {kind: tuple(row() for _ in range(sites)) for kind in KINDS}
    numbers = tuple(tuple(draw.uniform(0, 5) for _ in range(count)) for _ in range(sites))
    names = tuple(f"layer_{site:02d}" for site in range(sites))
    page = TokenPage("large", WORDS * 71 + WORDS[:6], names, numbers, picks, numbers)
    document = page.to_html()
    assert len(document.encode()) < 8e6
    opened = viewer.open(document)
    opened.keyboard.press("Tab")
    opened.keyboard.press("End")
    weights = [f"#{j} {weight:.3f}".replace("-", "−") for j, weight in picks["attention"][-1][-1]]
    assert [item.split(" ", 1)[1] for item in listed(opened, "attention")] == weights


# -- what the page is given -------------------------------------------------------------------------------------------------


def test_data_is_json_without_a_tag() -> None:
    document = replace(PAGE, sites=("</script>", "<!--", "\u2028")).to_html()
    data = re.findall(r'<script type="application/json" id="data">(.*?)</script>', document, re.DOTALL)[0]
    assert "<" not in data
    assert json.loads(data)["sites"] == ["</script>", "<!--", "⟨U+2028⟩"]
    assert document.encode("utf-8").count(html.escape(PAGE.notes[0]).encode()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": ()}, "at least one token"),
        ({"sites": ()}, "at least one token and one site"),
        ({"gain": PAGE.gain[:2]}, "gain must have 3 sites with 14 tokens each"),
        ({"r2": (*PAGE.r2[:2], ())}, "r2 must have 3 sites with 14 tokens each"),
        ({"picks": {"lasso": (((),), (), ())}}, "lasso must have 3 sites with 14 tokens each"),
        ({"heads": ((),)}, "heads must have 3 sites"),
        ({"heads": ((), (((),),), ())}, "head 0 at layer_00 must have 14 tokens"),
        ({"heads": ((), (), ((((0, 1.0),), *((),) * 13),))}, "head 0 at final_norm: token 0 must pick earlier tokens"),
        ({"picks": {"elastic": ((), (), ())}}, "unknown kinds of picks: elastic; expected some of lasso, ridge, attention"),
        ({"picks": {"ridge": ((), (), (((0, 1.0),), *((),) * 13))}}, "ridge at final_norm: token 0 must pick earlier tokens"),
        ({"picks": {"ridge": ((), (), ((), ((0, math.nan),), *((),) * 12))}}, "token 1 must pick .* finite weights"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GeomprobeError, match=message):
        replace(PAGE, **changes)

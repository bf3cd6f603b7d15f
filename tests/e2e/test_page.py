"""The page in a real browser, whose microphone plays a fixture and whose camera shows a test picture."""

import re
import shutil
import subprocess
import time

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync", "--disable-background-networking",
    "--disable-component-update", "--no-first-run", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)  # fmt: skip
TOKEN = "open, sesame"
WORDS = {"one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"}


@pytest.fixture(scope="module")
def browser(fixtures_dir, tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    sound = tmp_path_factory.mktemp("microphone") / "numbers.wav"
    command = ["ffmpeg", "-i", str(fixtures_dir / "demo-numbers.wav"), "-ar", "48000", str(sound)]
    command[0] = shutil.which("ffmpeg") or pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    subprocess.run(command, check=True, capture_output=True)
    with sync_playwright() as playwright:
        arguments = [*OPTIONS, f"--use-file-for-fake-audio-capture={sound}"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def container(container_node):
    return container_node("whisper-demo", "green-tint-cpu").start().ready()


@pytest.fixture
def visit(browser):
    """Return a function that opens the page of a node; nothing may go wrong in it."""
    context = browser.new_context()
    context.set_default_timeout(60_000)
    problems = []

    def opened(node, *, expected=()):
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if "Security Policy" in message.text else None)
        page.goto(node.url)
        page.locator("#state[data-ready=yes]").wait_for()
        page.locator("#speech-pipeline option").first.wait_for(state="attached")
        return page

    yield opened
    context.close()
    assert not problems


def heard(page, kind="final"):
    return " ".join(page.locator(f"#text li.{kind} span").all_inner_texts())


def record_until(page, question, seconds=90):
    """Record until the question has an answer; stop, and wait for the last words."""
    page.get_by_role("button", name="Record").click()
    wait(question, seconds)
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Record").wait_for()
    wait(lambda: page.locator("#record").is_enabled(), seconds)


def wait(question, seconds=90):
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return answer


def downloaded(page, name):
    with page.expect_download() as download:
        page.get_by_role("button", name=name).click()
    return download.value.path().read_text()


def numbers_in(text):
    return WORDS & set(re.findall(r"\w+", text.lower()))


def test_words_appear_while_somebody_speaks_and_can_be_taken_home(visit, container):
    page = visit(container)
    partial = []
    record_until(page, lambda: partial.append(heard(page, "partial")) or len(numbers_in(heard(page))) > 2)
    assert numbers_in(" ".join(partial))
    assert heard(page, "partial") == ""
    srt = downloaded(page, "srt").strip().split("\n\n")
    times = r"\d\d:\d\d:\d\d,\d{3}"
    assert all(re.fullmatch(rf"{at + 1}\n{times} --> {times}(\n.{{1,42}}){{1,2}}", cue) for at, cue in enumerate(srt))
    assert downloaded(page, "vtt").startswith("WEBVTT\n\n00:00:")
    assert downloaded(page, "txt").split() == heard(page).split()


def test_a_server_that_dies_and_comes_back_costs_no_word(visit, container_node):
    container = container_node("whisper-demo").start().ready()
    page = visit(container)

    def again():
        if container.process.poll() is None and numbers_in(heard(page)):
            container.kill()
            page.get_by_text("Recording continues").wait_for()
            before = len(heard(page))
            container.start().ready()
            wait(lambda: len(heard(page)) > before)
            return True
        return False

    record_until(page, again)
    assert not page.locator("#problem").is_visible()
    assert page.locator("#text li.lost").count() == 0


def test_a_server_that_is_dead_is_told_whatever_is_asked_of_it(visit, container_node, fixtures_dir):
    container = container_node("whisper-demo").start().ready()
    page = visit(container)
    container.kill()
    for ask in (
        page.get_by_role("button", name="Record").click,
        lambda: page.locator("#file").set_input_files(fixtures_dir / "demo-numbers.wav"),
    ):
        page.evaluate("document.getElementById('problem').textContent = ''")
        ask()
        page.locator("#problem", has_text="No answer from the server").wait_for()
        assert page.get_by_role("button", name="Record").is_visible()


def test_subtitles_of_the_page_are_broken_in_any_script(visit, container):
    page = visit(container)
    vtt = page.evaluate(
        """async (texts) => {
            const { Transcript } = await import("/page/transcript.js");
            const transcript = new Transcript(document.getElementById("text"), () => {});
            texts.forEach((text, at) => transcript.add({ start: 9 * at, end: 9 * at + 9, text }));
            return transcript.render("vtt");
        }""",
        ["今天天气很好我们去公园散步吧。" * 5, "R&D <b> --> c", "مرحبا بكم"],
    )
    lines = [line for line in vtt.splitlines() if "今" in line]
    assert len(lines) > 2
    assert max(map(len, lines)) <= 21
    assert "R&amp;D &lt;b> -> c" in vtt
    direction = "getComputedStyle(document.querySelector('#text li:last-child span')).direction"
    assert page.evaluate(direction) == "rtl"


def test_a_file_is_read_with_its_times(visit, container, fixtures_dir):
    page = visit(container)
    page.locator("#file").set_input_files(fixtures_dir / "demo-numbers.wav")
    wait(lambda: len(numbers_in(heard(page))) > 2)
    assert page.locator("#text time").first.inner_text() == "0:00"
    page.locator("#file").set_input_files(fixtures_dir / "README.md")
    page.locator("#problem").wait_for()
    assert "media" in page.locator("#problem").inner_text() or "sound" in page.locator("#problem").inner_text()


def test_the_camera_is_seen_beside_its_tinted_twin(visit, container):
    page = visit(container)
    page.get_by_role("tab", name="Video").click()
    page.get_by_role("button", name="Start the camera").click()
    page.get_by_text("frames a second").wait_for()
    picture = "document.getElementById('processed').getContext('2d').getImageData(0, 0, 320, 240).data"
    wait(lambda: page.evaluate(f"Math.min(...{picture}.filter((_, at) => at % 4 === 1))") >= 80)
    page.get_by_role("button", name="Stop the camera").click()


def test_the_gateway_has_the_page_too(visit, container, orchestrator_node, gateway_node):
    gateway = gateway_node(orchestrator_node(container).start().ready()).start().ready()
    page = visit(gateway)
    page.locator("#speech-pipeline").select_option("whisper-demo")
    record_until(page, lambda: len(numbers_in(heard(page))) > 2)
    page.get_by_role("tab", name="Operator").click()
    wait(lambda: "whisper-demo" in page.locator("#details").inner_text())


def test_a_token_is_asked_for_and_used(visit, node):
    container = (
        node(
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            "PORT",
            "--pipeline",
            "whisper-demo",
            environment={"AUTH_TOKEN": TOKEN},
        )
        .start()
        .ready()
    )
    page = visit(container)
    page.get_by_label("token").fill("open, barley")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Record").click()
    page.get_by_text("Wrong token.").wait_for()
    page.get_by_label("token").fill(TOKEN)
    page.get_by_role("button", name="Continue").click()
    record_until(page, lambda: numbers_in(heard(page)))


def test_it_fits_a_phone_in_the_dark_and_is_used_by_keyboard(visit, container):
    page = visit(container)
    page.set_viewport_size({"width": 360, "height": 640})
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_role("tab", name="Speech").focus()
    page.keyboard.press("ArrowLeft")
    assert page.get_by_role("tab", name="Operator").get_attribute("aria-selected") == "true"
    wait(lambda: "ready" in page.locator("#figures").inner_text())
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", background))) < 200

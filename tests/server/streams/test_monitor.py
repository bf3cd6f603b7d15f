"""What a stream says of itself: frame rates, and the status that a gateway shows."""

from tests.server.streams.conftest import unheard_monitor
from whisper_byoc.server.streams import monitor as module
from whisper_byoc.server.streams.monitor import FrameRate


def test_a_frame_rate_is_about_the_last_seconds(monkeypatch):
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    rate = FrameRate()
    assert (rate.per_second, rate.last_ms) == (0.0, None)
    for _ in range(31):
        rate.count()
        now += 0.1
    assert rate.per_second == 10.0
    now += 20
    assert rate.per_second == 0.0
    for _ in range(10_000):
        now += 0.001
        rate.count()
    assert rate.per_second == 1000.0, "of the last 600"


def test_status():
    monitor = unheard_monitor()
    status = monitor.status()
    assert (status["pipeline"], status["state"]) == ("pipeline", "OFFLINE")
    assert status["inference_status"]["last_params"] is None
    monitor.audio_in.count()
    monitor.records_out.count()
    monitor.params_changed({"language": "en"})
    monitor.params_changed({"partials": True})
    monitor.error("an encoder died")
    status = monitor.status()
    assert status["state"] == "ONLINE"
    assert status["input_status"]["last_input_time"] >= status["start_time"]
    inference = status["inference_status"]
    assert inference["last_output_time"] >= status["start_time"]
    assert inference["last_params"] == {"language": "en", "partials": True}
    assert inference["last_error"] == "an encoder died"
    monitor.audio_in.last_ms -= 11_000
    assert monitor.status()["state"] == "DEGRADED_INPUT"

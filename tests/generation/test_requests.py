"""Settings of an endpoint: what is refused, and that no message repeats a key or a password."""

from typing import Any

import pytest

from judgelit.errors import UserError
from judgelit.generation.engine import EngineSpec
from judgelit.generation.requests import Key, Requests, base_urls, without_password

URL = "http://127.0.0.1:8000/v1"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"budget": 0.0, "prompt_price": 1.0, "completion_price": 1.0}, r"requests\.budget: found 0\.0, .*above 0"),
        ({"budget": -1.0}, r"requests\.budget: found -1\.0"),
        ({"budget": float("nan")}, r"requests\.budget: found nan"),
        ({"budget": 5.0, "prompt_price": 1.0}, r"requests\.budget: found no prices"),
        ({"concurrency": 0}, r"requests\.concurrency: found 0, expected 1 to"),
        ({"deadline": 0.0}, r"requests\.deadline: found 0\.0"),
        ({"retries": -1}, r"requests\.retries: found -1"),
        ({"top_logprobs": 21}, r"requests\.top_logprobs: found 21, expected 0 to 20"),
        ({"requests_per_minute": float("inf")}, r"requests\.requests_per_minute: found inf"),
        ({"extra_body": {"stream": True}}, r"requests\.extra_body\.stream: expected a field that judgelit does not"),
        ({"extra_body": {"x": {1, 2}}}, r"requests\.extra_body: expected values that JSON can hold"),
    ],
)
def test_wrong_settings_are_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Requests(**settings)


@pytest.mark.parametrize("name", ["sk-abc123456", "not a name", ""])
def test_a_key_in_place_of_its_variables_name_is_not_repeated(name: str) -> None:
    with pytest.raises(UserError, match="expected the name of an environment variable") as refused:
        Requests(key_variable=name)
    assert not name or name not in str(refused.value)
    with pytest.raises(UserError, match="found no environment variable of this name") as refused:
        Key.read("SKABC123456", {})
    assert "SKABC" not in str(refused.value)


def test_the_key_stands_in_no_text() -> None:
    key = Key.read("MY_KEY", {"MY_KEY": " sk-secret-1 \n"})
    assert "sk-secret" not in repr(key) and key.secret() == "sk-secret-1"
    assert key.mask("wrong key sk-secret-1!") == "wrong key ***!"
    for text in ("sk secret", "sk-ü-secret", "sk\x00secret"):
        with pytest.raises(UserError, match="environment variable MY_KEY: expected a key") as refused:
            Key.read("MY_KEY", {"MY_KEY": text})
        assert "secret" not in str(refused.value)
    none = Key.read("OPENAI_API_KEY", {})
    assert not none.given and none.secret() and none.mask("EMPTY") == "EMPTY"


def test_base_urls() -> None:
    assert base_urls(f" {URL}/ ") == [URL]
    assert base_urls("http://127.0.0.1:8000") == [URL]
    assert base_urls(f"{URL}/chat/completions") == [URL]
    assert base_urls(["http://a/v1", "https://b/api", "http://a/v1/"]) == ["http://a/v1", "https://b/api"]
    for url in ("", "127.0.0.1:8000", "ftp://a/v1", "http://", "http://a:port/v1", "http://a b/v1"):
        with pytest.raises(UserError, match=r"^endpoint: found .*, expected a base URL such as http://"):
            base_urls(url)
    with pytest.raises(UserError, match="empty list"):
        base_urls([])


@pytest.mark.parametrize("password", ["s3cret", "s3/cret", "s3#cret", "s3?cret", "s3@cret"])
def test_a_shown_url_has_no_part_of_the_password(password: str) -> None:
    assert without_password(f"http://user:{password}@host/v1?key=1") == "http://host/v1"


@pytest.mark.parametrize("url", ["http://me:hunter22@a/v1", "http://hunter22@a/v1", "https://a/v1?key=hunter22"])
def test_a_url_with_a_password_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(UserError, match=r"^endpoint: found ") as refused:
        EngineSpec("m", endpoint=url)
    assert "hunter22" not in str(refused.value) and "http" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", "float32"),
        ("device", "cpu"),
        ("quantization", "nf4"),
        ("attention", "eager"),
        ("batch_size", 4),
        ("chat_template", "x.jinja"),
        ("trust_remote_code", True),
    ],
)
def test_settings_of_a_loaded_model_have_no_meaning_with_an_endpoint(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{name}: has no meaning with an endpoint"):
        EngineSpec("m", endpoint=URL, **{name: value})


def test_settings_of_requests_have_no_meaning_without_an_endpoint() -> None:
    with pytest.raises(UserError, match=r"^requests\.concurrency: has no meaning for a model that is loaded here"):
        EngineSpec("nano", requests=Requests(concurrency=3))
    assert EngineSpec("nano", requests=Requests()).requests.changed() == []

"""What never leaves the machine in a report or card: credentials, home folders, unprintable characters."""

from __future__ import annotations

import re

HIDDEN = "[redacted]"

# A token has 34 letters and digits after "hf_"; shorter ones with a digit or capital are taken too, which spares
# words such as hf_transfer.
_HF_TOKEN = re.compile(r"hf_(?:(?=[A-Za-z]*[A-Z0-9])[A-Za-z0-9]{6,}|[a-z]{16,})")
# Keys whose values are credentials, named one by one, for eos_token and max_tokens are none.
_KEY = r"(?:hub|hf|auth|access|hugging_?face(?:_hub)?)[_-]token|api[_-]?key|password|secret"
_VALUE = r"(?!(?:null|none|true|false)\b|-)[^\s\"',;&]+"
_SECRET_KEY = re.compile(_KEY, re.IGNORECASE)
_SECRET = re.compile(rf"((?:{_KEY})[\"']?\s*[:=]\s*[\"']?|--[\w.-]*(?:{_KEY})\s+[\"']?){_VALUE}", re.IGNORECASE)
_URL_LOGIN = re.compile(r"(?<=://)[^\s/@]+:[^\s/@]+(?=@)")
_HOME = re.compile(r"(?<![\w.~-])(?:/home/[^\s/'\"]+|/Users/[^\s/'\"]+|/root(?![\w.-])|[A-Za-z]:\\Users\\[^\s\\'\"]+)")

# Control characters get their visible pictures (U+2400 ff.); lone surrogates and C1 controls have none.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
_PICTURES |= {0x7F: 0x2421} | dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF], 0xFFFD)


def visible(text: str) -> str:
    """Return the text fit for UTF-8 and HTML: each control character or lone surrogate becomes one visible sign."""
    return text.translate(_PICTURES)


def redact_tokens(text: str) -> str:
    """Hide whatever looks like a Hugging Face token."""
    return _HF_TOKEN.sub(HIDDEN, text)


def redact(text: str) -> str:
    """Hide credentials and replace home folders by ``~``, in a command, a configuration or a path."""
    text = redact_tokens(text)
    text = _SECRET.sub(rf"\g<1>{HIDDEN}", text)
    return _HOME.sub("~", _URL_LOGIN.sub(HIDDEN, text))


def names_secret(key: str) -> bool:
    """Say whether a key, such as ``hub_token``, holds a credential."""
    return _SECRET_KEY.search(key) is not None

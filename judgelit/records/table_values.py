"""Values of tables, which have more types than JSON."""

from datetime import date, time, timedelta
from decimal import Decimal


def plain(value: object) -> object:
    """`value` with numbers in place of decimals and texts in place of dates and times, in lists and objects too.

    Bytes stay: a field that is read refuses them.
    """
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value) if isinstance(value, timedelta) else value

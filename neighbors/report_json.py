"""A report as plain values for JSON."""

from typing import Any

from .report import Item, Report, Strip


def report_values(report: Report) -> Any:
    """Return the list of strips; within an object of counts where the report names its strips."""
    strips = [_strip(strip, report.items_name) for strip in report.strips]
    if not report.strips_name:
        return strips
    return {
        "cache": str(report.cache),
        "teachers": list(report.teachers),
        **report.values,
        report.strips_name: strips,
    }


def _strip(strip: Strip, items_name: str) -> dict[str, Any]:
    query = {} if strip.query is None else {"query": _item(strip.query)}
    return {**query, **strip.values, items_name: [_item(item) for item in strip.items]}


def _item(item: Item) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if item.kind == "text":
        if item.row is not None:
            values["text_row"] = item.row
        values["text"] = item.captions[0].text
        values["langs"] = [caption.lang for caption in item.captions if caption.lang]
    elif item.file is not None:
        values["image"] = str(item.file)
    else:
        values |= {"row": item.row, "key": item.key}
        if item.view:
            values["view"] = item.view
        values["captions"] = [caption.text for caption in item.captions]
        values["langs"] = [caption.lang for caption in item.captions]
    if item.cosine is not None:
        values["cosine"] = item.cosine
    if item.remarks:
        values["remarks"] = list(item.remarks)
    return {**values, **item.values}

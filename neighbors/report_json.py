"""A report as plain values for JSON."""

from typing import Any

from .report import Group, Item, Report


def report_values(report: Report) -> Any:
    """Return the list of groups, or an object with counts and that list if the report names its groups."""
    groups = [_group(group, report.items_name) for group in report.groups]
    if not report.groups_name:
        return groups
    return {
        "cache": str(report.cache),
        "teachers": list(report.teachers),
        **report.values,
        report.groups_name: groups,
    }


def _group(group: Group, items_name: str) -> dict[str, Any]:
    query = {} if group.query is None else {"query": _item(group.query)}
    return {**query, **group.values, items_name: [_item(item) for item in group.items]}


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
    if item.patch_cosines is not None:
        values["patch_cosines"] = item.patch_cosines.round(4).tolist()
    if item.remarks:
        values["remarks"] = list(item.remarks)
    return {**values, **item.values}

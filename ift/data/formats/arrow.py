"""Parquet and Arrow files, a batch at a time.

In:  a path and its ending.
Out: a `Row` for each row, its values plain text, numbers, lists and mappings; a `Bad` for each stretch of rows that
     is cut off or damaged. The line is the number of the row.

    list(read_arrow(Path("a.parquet"), ".parquet"))    # [Row(1, {"day": "2024-02-29", "price": "1.10"})]
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ift.data.formats.jsonl import why
from ift.data.formats.rows import CUT, Bad, Row, checked, short
from ift.errors import IftError
from ift.tasks.strict_json import DECODER

ARROW = (".parquet", ".arrow")
_BATCH_ROWS, _BATCH_BYTES = 4096, 16 << 20  # of a batch turned into Python values at once


class _Lost(NamedTuple):
    """Rows of an Arrow file that cannot be read: how many, and why."""

    rows: int
    reason: str


def read_arrow(path: Path, kind: str) -> Iterator[Row | Bad]:
    """`kind` is the ending: Parquet, or either format of the Arrow library."""
    import pyarrow

    if not path.stat().st_size:
        return
    try:
        schema, batches = _parquet(path) if kind == ".parquet" else _arrow(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise IftError(
            f"{path} cannot be read: {short(str(error))}",
            wanted=f"a whole {'Parquet' if kind == '.parquet' else 'Arrow'} file",
            hint="it may be cut off or be something else: fetch it again",
        ) from None
    if repeated := [name for name in schema.names if schema.names.count(name) > 1]:
        raise IftError(f"{path}: two columns are named `{repeated[0]}`", wanted="a name for each")
    yield from map(checked, _arrow_rows(schema, batches))


def _parquet(path: Path) -> tuple[Any, Iterator[Any]]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    widest = max((g.total_byte_size // max(1, g.num_rows) for g in groups), default=0)
    rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, widest)))
    return file.schema_arrow, _of_groups(file, rows)


def _of_groups(file: Any, rows: int) -> Iterator[Any]:
    """Batches. A row group is on its own: one that is damaged takes none of the others along."""
    import pyarrow

    for group in range(file.num_row_groups):
        left = file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(batch_size=rows, row_groups=[group]):
                left -= batch.num_rows
                yield batch
        except (pyarrow.ArrowException, OSError) as error:
            yield _Lost(left, f"{left:,} rows from here on cannot be read: {error}")


def _arrow(path: Path) -> tuple[Any, Iterator[Any]]:
    """Both formats of the Arrow library: the stream, and the file, a stream with an index behind it."""
    import pyarrow.ipc

    source = pyarrow.memory_map(str(path))
    cut = False
    if source.read(6) == b"ARROW1":
        try:
            file = pyarrow.ipc.open_file(source)
        except pyarrow.ArrowInvalid:  # no index
            cut = True
            source.seek(8)
        else:
            return file.schema, _of_index(file)
    else:
        source.seek(0)
    stream = pyarrow.ipc.open_stream(source)
    return stream.schema, _of_stream(stream, cut)


def _of_index(file: Any) -> Iterator[Any]:
    import pyarrow

    for i in range(file.num_record_batches):
        try:
            yield _sound(file.get_batch(i))
        except (pyarrow.ArrowException, OSError) as error:
            yield _Lost(1, f"a batch of rows cannot be read: {error}")


def _of_stream(stream: Any, cut: bool) -> Iterator[Any]:
    import pyarrow

    try:
        for batch in stream:
            yield _sound(batch)
    except (pyarrow.ArrowException, OSError) as error:
        yield _Lost(1, f"{CUT}, or damaged ({error})")
    else:
        if cut:
            yield _Lost(1, CUT)


def _sound(batch: Any) -> Any:
    """The batch, or `_Lost`: in the file's own bytes a text may begin anywhere, and reading there ends the process."""
    import pyarrow

    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate(full=True)
        except pyarrow.ArrowInvalid as error:
            # its places were seen to be good before its letters; `_python_values` finds the row
            if "UTF8" not in str(error) or pyarrow.types.is_nested(column.type):
                many = batch.num_rows
                return _Lost(many, f"`{name}` is damaged in {many:,} rows from here on: {error}")
    return batch


def _arrow_rows(schema: Any, batches: Iterable[Any]) -> Iterator[Row | Bad]:
    plain = {field.name: convert for field in schema if (convert := _converter(field.type))}
    number = 0
    for batch in batches:
        if isinstance(batch, _Lost):
            yield Bad(number + 1, batch.reason, "")
            number += batch.rows
            continue
        rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)))
        for start in range(0, batch.num_rows, rows):
            for values in _python_values(batch.slice(start, rows)):
                number += 1
                if isinstance(values, str):
                    yield Bad(number, values, "")
                    continue
                try:
                    for name, convert in plain.items():
                        if values[name] is not None:
                            values[name] = convert(values[name])
                except ValueError as error:
                    yield Bad(number, f"`{name}` {error}", "")
                else:
                    yield Row(number, values)


def _python_values(batch: Any) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch; in place of one that has no Python values, why."""
    try:
        yield from batch.to_pylist(maps_as_pydicts="strict")
        return
    except (KeyError, ValueError, OverflowError):
        pass  # one bad cell fails the whole batch: find its row
    for i in range(batch.num_rows):
        values: dict[str, Any] | str = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                values[name] = column[i].as_py(maps_as_pydicts="strict")  # type: ignore[index]
            except UnicodeDecodeError:
                values = f"`{name}` is not UTF-8"
                break
            except KeyError:
                values = f"`{name}` is a mapping with one key more than once"
                break
            except (ValueError, OverflowError) as error:
                values = f"`{name}` cannot be read: {error}"
                break
        yield values


def _converter(kind: Any) -> Callable[[Any], Any] | None:
    """What makes plain text, numbers, lists and mappings of an Arrow type's Python values; None where they are."""
    from pyarrow import BaseExtensionType, types

    if isinstance(kind, BaseExtensionType):
        named: dict[str, Callable[[Any], Any]] = {"arrow.json": _json_of, "arrow.uuid": str}
        return named.get(kind.extension_name) or _converter(kind.storage_type)
    if types.is_dictionary(kind):
        return _converter(kind.value_type)
    if types.is_map(kind):
        inner = _converter(kind.item_type)
        return lambda value: {str(k): _inside(inner, v) for k, v in value.items()}
    if types.is_nested(kind) and hasattr(kind, "value_type"):
        each = _converter(kind.value_type)
        return each and (lambda value: [_inside(each, v) for v in value])
    if types.is_struct(kind):
        return _struct_converter(kind)
    if types.is_duration(kind) or types.is_interval(kind):
        return str
    if types.is_temporal(kind):
        return lambda value: value.isoformat()
    if types.is_decimal(kind):
        return lambda value: format(value, "f")
    if types.is_float16(kind) or types.is_float32(kind):
        # the few digits that tell it from its neighbours of the same width: 3.8, where a double is 3.799999952316284
        width: Any = np.float16 if types.is_float16(kind) else np.float32
        return lambda value: float(str(width(value)))
    if "binary" in str(kind):  # plain, large, view and fixed_size
        return _decoded
    return None


def _json_of(text: str) -> Any:
    try:
        return DECODER.decode(text)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"cannot be read: {why(error)}") from None


def _inside(convert: Callable[[Any], Any] | None, value: Any) -> Any:
    return value if convert is None or value is None else convert(value)


def _struct_converter(kind: Any) -> Callable[[Any], Any] | None:
    inner = {field.name: convert for field in kind if (convert := _converter(field.type))}
    if {field.name for field in kind} == {"bytes", "path"}:
        # pictures and sounds, as the `datasets` library keeps them: no text, and no reason to lose the row
        inner["bytes"] = lambda value: None
    return (lambda value: {k: _inside(inner.get(k), v) for k, v in value.items()}) if inner else None


def _decoded(value: bytes) -> str | None:
    """Bytes that are no text, such as a picture's, are nothing: where a field needs them, it says so."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return None

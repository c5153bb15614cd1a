"""What TensorBoard's HParams page shows: the settings of a run, beside its final scores."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

from mtrl.run.directory import RunConfig
from mtrl.schema import flatten, types_of

LEFT_OUT = ("run_dir", "name", "plugins", "agent.smto.name", "smto.name")
"""Of the machine, or said by the method and the run's own name."""
KINDS = {bool: api_pb2.DATA_TYPE_BOOL, int: api_pb2.DATA_TYPE_FLOAT64}
KINDS[float] = KINDS[int]


def session_start(config: RunConfig, scores: Sequence[str]) -> list[Summary]:
    """The settings of a run that begins; scores: tags whose last values are its result.

    TensorBoard takes the list of settings from one run for all, so it holds every setting. First
    come the method and the seed, then the settings that differ from their defaults.
    """
    values, defaults = flatten(config), flatten(type(config)())
    kinds = {key: _plain(kind) for key, kind in types_of(type(config)).items()}
    values = {"_method": config.method, "_seed": values.pop("seed")} | values
    experiment = api_pb2.Experiment(
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in scores]
    )
    session = plugin_data_pb2.SessionStartInfo()
    for key, value in values.items():
        if key in LEFT_OUT:
            continue
        kind = kinds.get(key.removeprefix("_"), str)
        experiment.hparam_infos.add(
            name=key,  # by which TensorBoard sorts
            display_name=key.removeprefix("_"),
            type=KINDS.get(kind, api_pb2.DATA_TYPE_STRING),
            differs=key.startswith("_") or value != defaults[key],
        )
        if value is None:
            continue
        if kind is bool:
            session.hparams[key].bool_value = value
        elif kind in KINDS:
            session.hparams[key].number_value = value
        else:
            session.hparams[key].string_value = _text(value)
    return [
        _summary(metadata.EXPERIMENT_TAG, experiment=experiment),
        _summary(metadata.SESSION_START_INFO_TAG, session_start_info=session),
    ]


def session_end() -> Summary:
    """Of a run that has come to its end."""
    ended = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS)
    return _summary(metadata.SESSION_END_INFO_TAG, session_end_info=ended)


def _plain(kind: Any) -> Any:
    """`float` of `float | None`; anything else that may be of several types is text."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        kinds = [one for one in typing.get_args(kind) if one is not types.NoneType]
        return kinds[0] if len(kinds) == 1 else str
    return kind


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value)


def _summary(tag: str, **content: Any) -> Summary:
    data = plugin_data_pb2.HParamsPluginData(**content)
    about = metadata.create_summary_metadata(data)
    return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)])

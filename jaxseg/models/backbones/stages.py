"""Strides to dilations: how a classification network keeps its resolution."""

from typing import NamedTuple


class Stage(NamedTuple):
    """What the first block of a stage does with the resolution, and how far all its blocks reach."""

    stride: int
    dilation: int
    first_dilation: int


def plan(strides: list[int], stem_stride: int, output_stride: int) -> list[Stage]:
    """For each stage of a network its stride and dilation once it must not shrink below `1 / output_stride`.

    Once the output stride is reached a stride of 2 becomes a doubled dilation (DeepLabV3, Chen et al. 2017, section
    3.1). References differ in the first block of such a stage: `dilation` (SMP) or still `first_dilation`, the dilation
    of the stage before (torchvision).

    Args:
      strides: of the stages, in order, as published.
      stem_stride: how much the image has shrunk before the first of them.
      output_stride: the largest stride allowed.
    """
    reached, dilation, stages = stem_stride, 1, []
    for stride in strides:
        before = dilation
        if stride > 1 and reached * stride > output_stride:
            dilation *= stride
            stride = 1
        reached *= stride
        stages.append(Stage(stride, dilation, before))
    return stages

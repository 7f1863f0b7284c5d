"""The published ImageNet-1K table, as printed.

Source: *KAConv: Kernel attention convolutions*, Neurocomputing, 2022, doi 10.1016/j.neucom.2022.10.017. Errors are of a
single 224×224 centre crop. FLOPs follow the paper's own counting, see `kaconv.models.complexity.paper_flops`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedRow:
    """A row of the table. `flops` and `params` are kept as printed, because agreement is judged to the printed digit.

    Args:
        name: as in the paper.
        model: the name that `kaconv.create_model` takes.
        top1_error, top5_error: in percent.
    """

    name: str
    model: str
    top1_error: float
    top5_error: float
    flops: str
    params: str


TABLE = (
    PublishedRow("ResNet50", "resnet50", 23.30, 6.79, "4.11G", "25.56M"),
    PublishedRow("KAResNet50-L", "ka_resnet50_l", 22.27, 6.24, "4.15G", "27.83M"),
    PublishedRow("KAResNet50-H", "ka_resnet50_h", 21.92, 6.08, "4.16G", "35.56M"),
    PublishedRow("ResNet101", "resnet101", 22.28, 6.10, "7.84G", "44.55M"),
    PublishedRow("KAResNet101-L", "ka_resnet101_l", 21.80, 6.03, "7.90G", "49.44M"),
    PublishedRow("KAResNet101-H", "ka_resnet101_h", 21.28, 5.84, "7.92G", "66.08M"),
    PublishedRow("ResNeXt50", "resnext50_32x4d", 22.35, 6.43, "4.26G", "25.03M"),
    PublishedRow("KAResNeXt50-L", "ka_resnext50_32x4d_l", 21.97, 6.24, "4.34G", "31.27M"),
    PublishedRow("KAResNeXt50-H", "ka_resnext50_32x4d_h", 21.23, 6.02, "4.36G", "53.03M"),
    PublishedRow("MobileNetV2 .5x", "mobilenetv2_050", 35.62, 14.55, "138.46M", "1.97M"),
    PublishedRow("KAMobileNetV2-L .5x", "ka_mobilenetv2_050_l", 33.72, 13.14, "180.52M", "4.15M"),
    PublishedRow("KAMobileNetV2-H .5x", "ka_mobilenetv2_050_h", 33.09, 12.77, "189.00M", "11.69M"),
    PublishedRow("MobileNetV2 1x", "mobilenetv2_100", 28.09, 9.66, "315.41M", "3.5M"),
    PublishedRow("KAMobileNetV2-L 1x", "ka_mobilenetv2_100_l", 26.83, 8.74, "378.71M", "9.31M"),
    PublishedRow("KAMobileNetV2-H 1x", "ka_mobilenetv2_100_h", 27.01, 9.08, "401.46M", "29.52M"),
)

_UNITS = {"M": 10**6, "G": 10**9}


def as_printed(value: int, like: str) -> str:
    """`value` in the unit and with the decimals of a printed figure: `as_printed(3504872, "3.5M")` is "3.5M"."""
    number, unit = like[:-1], like[-1]
    decimals = len(number.partition(".")[2])
    return f"{value / _UNITS[unit]:.{decimals}f}{unit}"

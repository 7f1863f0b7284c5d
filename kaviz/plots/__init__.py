"""Figures: data in, `matplotlib.figure.Figure` out. Nothing here runs a model or opens a window."""

from kaviz.plots.attention import (
    most_dependent_channels,
    plot_channel_maps,
    plot_channel_range,
    plot_class_distances,
    plot_class_maps,
    plot_entropy,
    plot_input_dependence,
    plot_layer_maps,
)
from kaviz.plots.attribution import plot_attributions, plot_perturbation_curves
from kaviz.plots.layer import (
    plot_aggregation,
    plot_attention_by_channel,
    plot_attention_shift,
    plot_identity,
    plot_kernel_maps,
    plot_photo_and_kernels,
    plot_position_maps,
)
from kaviz.plots.speed import plot_peak_memory, plot_time_ratios, speed_frame, style_speed
from kaviz.plots.table import plot_added_cost, plot_error_against, plot_error_against_cost, style_table, table_frame
from kaviz.plots.training import plot_cost_and_benefit, plot_learning_curves, plot_test_errors

__all__ = [
    "most_dependent_channels",
    "plot_added_cost",
    "plot_aggregation",
    "plot_attention_by_channel",
    "plot_attention_shift",
    "plot_attributions",
    "plot_channel_maps",
    "plot_channel_range",
    "plot_class_distances",
    "plot_class_maps",
    "plot_cost_and_benefit",
    "plot_entropy",
    "plot_error_against",
    "plot_error_against_cost",
    "plot_identity",
    "plot_input_dependence",
    "plot_kernel_maps",
    "plot_layer_maps",
    "plot_learning_curves",
    "plot_peak_memory",
    "plot_perturbation_curves",
    "plot_photo_and_kernels",
    "plot_position_maps",
    "plot_test_errors",
    "plot_time_ratios",
    "speed_frame",
    "style_speed",
    "style_table",
    "table_frame",
]

"""Figures: data in, `matplotlib.figure.Figure` out. Nothing here runs a model or opens a window."""

from kaviz.plots.attention_maps import (
    plot_channel_maps,
    plot_channel_range,
    plot_class_maps,
    plot_layer_maps,
    plot_picture_maps,
)
from kaviz.plots.attention_statistics import (
    plot_class_distances,
    plot_deviation,
    plot_entropy,
    plot_input_dependence,
    statistics_frame,
)
from kaviz.plots.attribution import plot_attributions, plot_perturbation_curves
from kaviz.plots.attribution_checks import plot_attention_and_use, plot_faithfulness
from kaviz.plots.compare import (
    plot_channel_difference,
    plot_layer_difference,
    plot_training_maps,
    plot_training_statistics,
    plot_variants,
)
from kaviz.plots.detection import plot_detections, plot_inside_and_outside
from kaviz.plots.effects import plot_attention_and_cost, plot_effects, plot_removals, plot_transplants
from kaviz.plots.kernels import plot_contributions, plot_effective_kernels, plot_position_shares
from kaviz.plots.layer import (
    plot_aggregation,
    plot_attention_by_channel,
    plot_attention_shift,
    plot_identity,
    plot_kernel_maps,
    plot_photo_and_kernels,
    plot_position_maps,
)
from kaviz.plots.map_grid import most_dependent_channels
from kaviz.plots.robustness import plot_corruptions
from kaviz.plots.speed import plot_peak_memory, plot_time_ratios, speed_frame, style_speed
from kaviz.plots.stability import plot_attention_against_pixels, plot_changed_pictures, plot_stability
from kaviz.plots.study import plot_study, study_findings, study_frame, study_order
from kaviz.plots.table import plot_added_cost, plot_error_against, plot_error_against_cost, style_table, table_frame
from kaviz.plots.training import plot_cost_and_benefit, plot_learning_curves, plot_test_errors

__all__ = [
    "most_dependent_channels",
    "plot_added_cost",
    "plot_aggregation",
    "plot_attention_against_pixels",
    "plot_attention_and_cost",
    "plot_attention_and_use",
    "plot_attention_by_channel",
    "plot_attention_shift",
    "plot_attributions",
    "plot_changed_pictures",
    "plot_channel_difference",
    "plot_channel_maps",
    "plot_channel_range",
    "plot_class_distances",
    "plot_class_maps",
    "plot_contributions",
    "plot_corruptions",
    "plot_cost_and_benefit",
    "plot_detections",
    "plot_deviation",
    "plot_effective_kernels",
    "plot_effects",
    "plot_entropy",
    "plot_error_against",
    "plot_error_against_cost",
    "plot_faithfulness",
    "plot_identity",
    "plot_input_dependence",
    "plot_inside_and_outside",
    "plot_kernel_maps",
    "plot_layer_difference",
    "plot_layer_maps",
    "plot_learning_curves",
    "plot_peak_memory",
    "plot_perturbation_curves",
    "plot_photo_and_kernels",
    "plot_picture_maps",
    "plot_position_maps",
    "plot_position_shares",
    "plot_removals",
    "plot_stability",
    "plot_study",
    "plot_test_errors",
    "plot_time_ratios",
    "plot_training_maps",
    "plot_training_statistics",
    "plot_transplants",
    "plot_variants",
    "speed_frame",
    "statistics_frame",
    "study_findings",
    "study_frame",
    "study_order",
    "style_speed",
    "style_table",
    "table_frame",
]

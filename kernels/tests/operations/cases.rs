//! The cases of each operation: ordinary and odd shapes in every layout, and the edge cases of the contract.

mod images;
mod tokens;

pub use images::{conv2d, group_norm, group_norm_moments, join_channels, join_rows, norm_act};
pub use tokens::{
    activate, attention, gated_activate, gated_residual, join, join_grid, layer_norm, layer_norm_modulate,
    linear, linear_activate, linear_add, linear_of_two, merge, norm_rotary, rms_norm, rotary, split_heads,
};

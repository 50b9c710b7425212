//! Convolutions on CubeCL's backends.

use burn_cubecl::CubeBackend;

use super::ConvOps;

impl ConvOps for CubeBackend {}

//! Rotary embeddings on CubeCL's backends.

use burn_cubecl::CubeBackend;

use super::RotaryOps;

impl RotaryOps for CubeBackend {}

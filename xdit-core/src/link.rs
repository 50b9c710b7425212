//! Transfers of tensors between ranks, and how a failed one ends its rank.

mod failure;
mod wire;

pub use failure::catch;
pub(crate) use failure::{fail, first_cause, wait};
pub(crate) use wire::{Place, buffer};

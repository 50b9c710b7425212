//! Parallelism: from what was asked for ([`plan`]) over what each rank does ([`schedule`]) to doing it
//! ([`execute`], on all ranks by [`run`]). The methods that touch attention have a file each.

pub mod attention;
pub mod cost;
pub mod distrifusion;
pub mod execute;
mod failure;
pub mod guidance;
pub mod mesh;
pub mod methods;
pub mod pipefusion;
pub mod plan;
pub mod record;
pub mod ring;
pub mod run;
pub mod schedule;
pub mod split;
pub mod ulysses;
pub mod vae;
mod wire;

pub use failure::catch;
pub(crate) use failure::{fail, wait};
pub use methods::{METHODS, Method};
pub(crate) use wire::{Place, buffer};

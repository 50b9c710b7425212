//! The policy that decides which components stay in memory, between requests and within one.

use crate::weights::Residency;

/// A policy for components in memory, between requests and within one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Keep {
    /// [Decides](Self::decide) by the size of the transformer and the free memory.
    #[default]
    Auto,
    /// The text encoders, the transformer and the autoencoder stay.
    All,
    /// The transformer and the autoencoder stay. Text encoders are freed once all prompts of a request are encoded.
    Transformer,
    /// Nothing stays. The transformer is freed before the last picture of a request is decoded. If memory is short,
    /// layers that are used only for contexts are treated as in `None`.
    Request,
    /// As `Request`, and layers that are used only for contexts are read for each picture. They take no memory while
    /// its steps run.
    None,
}

/// A policy, and the values on which it is based.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The requested policy.
    pub asked: Keep,
    /// The effective policy, which is not `Auto`.
    pub keep: Keep,
    /// The residency, within a request, of layers that are used only for contexts.
    pub once: Residency,
    /// Bytes of the transformer and the autoencoder.
    pub transformer_bytes: u64,
    /// Bytes that were free on their device before they were loaded, if known.
    pub free_bytes: Option<u64>,
}

impl Keep {
    /// Resolves `Auto`; other policies stay as they are.
    ///
    /// The transformer stays if twice its size fits into `free_bytes`, since activations need memory, too, or if the
    /// free memory is unknown. If it does not fit into three quarters of the free memory, layers that are used only for
    /// contexts are read at each use, unless the policy keeps the transformer.
    pub fn decide(self, transformer_bytes: u64, free_bytes: Option<u64>) -> Kept {
        let fits = |share: fn(u64) -> u64| free_bytes.is_none_or(|free| transformer_bytes <= share(free));
        let keep = match self {
            Self::Auto if fits(|free| free / 2) => Self::Transformer,
            Self::Auto if fits(|free| free / 4 * 3) => Self::Request,
            Self::Auto => Self::None,
            asked => asked,
        };
        let once = match keep {
            Self::None => Residency::Reread,
            Self::Request if !fits(|free| free / 4 * 3) => Residency::Reread,
            _ => Residency::Hold,
        };
        Kept { asked: self, keep, once, transformer_bytes, free_bytes }
    }

    /// Whether text encoders stay.
    pub fn keeps_text_encoders(self) -> bool {
        self == Self::All
    }

    /// Whether the transformer and the autoencoder stay.
    pub fn keeps_transformer(self) -> bool {
        matches!(self, Self::All | Self::Transformer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_depends_on_the_free_memory() {
        let (hold, reread) = (Residency::Hold, Residency::Reread);
        for (asked, free, keep, once) in [
            (Keep::Auto, Some(60), Keep::Transformer, hold),
            (Keep::Auto, Some(59), Keep::Request, hold),
            (Keep::Auto, Some(40), Keep::Request, hold),
            (Keep::Auto, Some(39), Keep::None, reread),
            (Keep::Auto, None, Keep::Transformer, hold),
            (Keep::All, Some(0), Keep::All, hold),
            (Keep::Transformer, Some(0), Keep::Transformer, hold),
            (Keep::Request, Some(40), Keep::Request, hold),
            (Keep::Request, Some(39), Keep::Request, reread),
            (Keep::Request, None, Keep::Request, hold),
            (Keep::None, Some(1000), Keep::None, reread),
        ] {
            let kept = asked.decide(30, free);
            assert_eq!((kept.keep, kept.once), (keep, once), "{asked:?} with {free:?} free");
        }
    }
}

//! Which components stay in memory between requests.

/// A policy for the memory between requests. Within a request a component is loaded at most once, whatever the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Keep {
    /// [Chosen](Self::choose) from the sizes of the components and the free memory.
    #[default]
    Auto,
    /// Text encoders, transformer and autoencoder.
    All,
    /// Transformer and autoencoder. Text encoders are freed once all prompts of a request are encoded.
    Transformer,
    /// Nothing. The transformer is freed before the last picture of a request is decoded.
    None,
}

impl Keep {
    /// The policy that `Auto` stands for; the others stand for themselves. A component is kept if twice its size fits
    /// into `free_bytes`: activations need room, too. Where the free memory is unknown, the transformer is kept.
    pub fn choose(self, text_encoder_bytes: u64, transformer_bytes: u64, free_bytes: Option<u64>) -> Self {
        let fits = |bytes: u64| free_bytes.is_none_or(|free| bytes <= free / 2);
        match self {
            Self::Auto if free_bytes.is_some() && fits(text_encoder_bytes + transformer_bytes) => Self::All,
            Self::Auto if fits(transformer_bytes) => Self::Transformer,
            Self::Auto => Self::None,
            chosen => chosen,
        }
    }

    /// Whether text encoders stay.
    pub fn keeps_text_encoders(self) -> bool {
        self == Self::All
    }

    /// Whether transformer and autoencoder stay.
    pub fn keeps_transformer(self) -> bool {
        matches!(self, Self::All | Self::Transformer)
    }
}

/// The memory of this machine that programs may still take, where the system says.
pub fn free_bytes() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_depends_on_what_fits() {
        let auto = |free| Keep::Auto.choose(10, 20, free);
        assert_eq!(auto(Some(60)), Keep::All);
        assert_eq!(auto(Some(59)), Keep::Transformer);
        assert_eq!(auto(Some(39)), Keep::None);
        assert_eq!(auto(None), Keep::Transformer);
        assert_eq!(Keep::All.choose(10, 20, Some(0)), Keep::All);
    }
}

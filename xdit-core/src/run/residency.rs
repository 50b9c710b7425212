//! Which components stay in memory between requests.

/// A policy for the memory that components take, from one request to the next and within one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Keep {
    /// [Chosen](Self::choose) from the size of the transformer and the free memory.
    #[default]
    Auto,
    /// Text encoders, transformer and autoencoder stay.
    All,
    /// Transformer and autoencoder stay. Text encoders are freed once all prompts of a request are encoded.
    Transformer,
    /// Nothing stays. The transformer is freed before the last picture of a request is decoded.
    Request,
    /// As `Request`; and layers that only make conditions ready are read for each picture, and take no memory while its
    /// steps run.
    None,
}

impl Keep {
    /// The policy that `Auto` stands for; the others stand for themselves. The transformer stays if twice its size fits
    /// into `free_bytes`, as activations need memory, too, or if the free memory is unknown. If it hardly fits, nothing
    /// stays.
    pub fn choose(self, transformer_bytes: u64, free_bytes: Option<u64>) -> Self {
        match (self, free_bytes) {
            (Self::Auto, None) => Self::Transformer,
            (Self::Auto, Some(free)) if transformer_bytes <= free / 2 => Self::Transformer,
            (Self::Auto, Some(free)) if transformer_bytes <= free / 4 * 3 => Self::Request,
            (Self::Auto, Some(_)) => Self::None,
            (chosen, _) => chosen,
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
    fn auto_depends_on_the_free_memory() {
        let auto = |free| Keep::Auto.choose(30, free);
        assert_eq!(auto(Some(60)), Keep::Transformer);
        assert_eq!(auto(Some(59)), Keep::Request);
        assert_eq!(auto(Some(40)), Keep::Request);
        assert_eq!(auto(Some(39)), Keep::None);
        assert_eq!(auto(None), Keep::Transformer);
        assert_eq!(Keep::All.choose(30, Some(0)), Keep::All);
    }
}

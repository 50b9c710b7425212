//! The parallel methods, and their list for users. Each method that changes attention or rows has its own file.

pub mod attention;
pub mod distrifusion;
pub mod keys;
pub mod pipefusion;
pub mod ring;
pub mod stale_rows;
pub mod ulysses;
pub mod vae;

/// A way to spread one run over ranks. Methods combine freely and make no demands on a transformer. A UNet has none of
/// the stages and patches of PipeFusion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// Its name in the literature.
    pub name: &'static str,
    /// The command-line option that turns it on.
    pub option: &'static str,
    /// The parts of the work that are spread over ranks.
    pub spreads: &'static str,
    /// The publication that introduced it.
    pub source: &'static str,
}

/// All parallel methods.
pub const METHODS: &[Method] = &[
    Method {
        name: "CFG",
        option: "--use-cfg-parallel",
        spreads: "the branches of guidance",
        source: "xDiT (Fang et al. 2024)",
    },
    Method {
        name: "data",
        option: "--data-parallel-degree",
        spreads: "pictures",
        source: "xDiT (Fang et al. 2024)",
    },
    Method {
        name: "Ulysses",
        option: "--ulysses-degree",
        spreads: "tokens, exchanged for heads around attention",
        source: "DeepSpeed-Ulysses (Jacobs et al. 2023)",
    },
    Method {
        name: "ring",
        option: "--ring-degree",
        spreads: "tokens, with keys and values passed around",
        source: "Ring Attention (Liu et al. 2023)",
    },
    Method {
        name: "PipeFusion",
        option: "--pipefusion-parallel-degree",
        spreads: "blocks, as a pipeline for strips of the picture",
        source: "PipeFusion (Fang et al. 2024)",
    },
    Method {
        name: "tensor",
        option: "--tensor-parallel-degree",
        spreads: "the heads and features of each layer",
        source: "Megatron-LM (Shoeybi et al. 2019)",
    },
    Method {
        name: "DistriFusion",
        option: "--distrifusion",
        spreads: "strips of the picture, which use each other's keys of the previous step",
        source: "DistriFusion (Li et al. 2024)",
    },
    Method {
        name: "parallel VAE",
        option: "--use-parallel-vae",
        spreads: "rows of a picture during decoding",
        source: "xDiT (Fang et al. 2024)",
    },
];

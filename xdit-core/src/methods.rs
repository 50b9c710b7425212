//! The parallel methods, for people: what each spreads over ranks, and the option that asks for it. Those that touch attention or rows have a file each.

pub mod attention;
pub mod distrifusion;
pub mod keys;
pub mod pipefusion;
pub mod ring;
pub mod ulysses;
pub mod vae;

/// A way to spread one run over ranks. Methods combine freely, and none asks anything of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// Its name in the literature.
    pub name: &'static str,
    /// The option of the program.
    pub option: &'static str,
    /// What is spread.
    pub spreads: &'static str,
    /// Where it comes from.
    pub source: &'static str,
}

/// Every method there is.
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
        spreads: "tokens, with keys and values passed round",
        source: "Ring Attention (Liu et al. 2023)",
    },
    Method {
        name: "PipeFusion",
        option: "--pipefusion-parallel-degree",
        spreads: "blocks, through which strips of the picture follow each other",
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
        spreads: "strips of the picture that see each other one step late",
        source: "DistriFusion (Li et al. 2024)",
    },
    Method {
        name: "parallel VAE",
        option: "--use-parallel-vae",
        spreads: "rows of the picture that is decoded",
        source: "xDiT (Fang et al. 2024)",
    },
];

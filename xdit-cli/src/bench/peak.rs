//! The peak speeds of GPUs.

/// Dense products of 16-bit numbers with sums in f32, in TFLOP/s, from the makers' data sheets. The first name that the
/// GPU's own begins with counts, after `NVIDIA ` and `GeForce `.
const PEAKS: [(&str, f64); 20] = [
    ("A10G", 70.0),
    ("A100", 312.0),
    ("A10", 125.0),
    ("A40", 149.7),
    ("B200", 2250.0),
    ("GH200", 989.4),
    ("H100 NVL", 835.0),
    ("H100 PCIe", 756.0),
    ("H100", 989.4),
    ("H200 NVL", 835.0),
    ("H200", 989.4),
    ("L40S", 362.1),
    ("L40", 181.1),
    ("L4", 121.0),
    ("RTX 3090", 71.0),
    ("RTX 4080", 97.5),
    ("RTX 4090", 165.2),
    ("RTX 5090", 209.5),
    ("RTX 6000 Ada", 364.2),
    ("RTX A6000", 154.8),
];

/// The peak of the GPU called `name` in FLOP/s, if it is known.
pub fn peak(name: &str) -> Option<f64> {
    let name = name.trim_start_matches("NVIDIA ").trim_start_matches("GeForce ");
    let known = PEAKS.iter().find(|(known, _)| {
        let rest = name.strip_prefix(known);
        rest.is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_alphanumeric()))
    });
    known.map(|(_, peak)| peak * 1e12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_by_the_names_of_their_drivers() {
        let peaks = ["NVIDIA H100 80GB HBM3", "NVIDIA H100 NVL", "NVIDIA A100-SXM4-80GB", "NVIDIA A10G"];
        assert_eq!(peaks.map(|name| peak(name).unwrap_or_default() / 1e12), [989.4, 835.0, 312.0, 70.0]);
        assert_eq!(peak("NVIDIA GeForce RTX 4090").map(|peak| peak / 1e12), Some(165.2));
        assert_eq!(["NVIDIA L400", "llvmpipe (LLVM 15.0.6, 256 bits)"].map(peak), [None, None]);
    }
}

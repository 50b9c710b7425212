//! A PixArt transformer of any size in a sparse file: every weight is a zero that takes no space on disk.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

/// The number of features of a head.
const HEAD_DIM: usize = 72;

/// The sizes of the transformer.
#[derive(Clone, Copy, Debug)]
pub struct SparsePixArt {
    /// The number of attention heads of a block.
    pub heads: usize,
    /// The number of blocks.
    pub blocks: usize,
    /// The number of features of a text token.
    pub caption: usize,
    /// The type of a number in the file, and its size in bytes.
    pub dtype: (&'static str, usize),
}

impl SparsePixArt {
    /// Writes `config.json` and the weights, in a file named `stem`, to `dir`.
    pub fn write(self, dir: &Path, stem: &str) {
        let dim = self.heads * HEAD_DIM;
        let config = json!({
            "_class_name": "Transformer2DModel", "activation_fn": "gelu-approximate", "attention_bias": true,
            "attention_head_dim": HEAD_DIM, "attention_type": "default", "caption_channels": self.caption,
            "cross_attention_dim": dim, "in_channels": 4, "norm_elementwise_affine": false, "norm_eps": 1e-6,
            "norm_type": "ada_norm_single", "num_attention_heads": self.heads, "num_embeds_ada_norm": 1000,
            "num_layers": self.blocks, "out_channels": 8, "patch_size": 2, "sample_size": 64,
        });
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
        let (dtype, size) = self.dtype;
        let (mut header, mut end) = (Map::new(), 0);
        for (name, shape) in self.shapes() {
            let start = end;
            end += size * shape.iter().product::<usize>();
            header.insert(name, json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] }));
        }
        let header = Value::Object(header).to_string();
        let mut file = File::create(dir.join(format!("{stem}.safetensors"))).unwrap();
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(header.as_bytes()).unwrap();
        file.set_len((8 + header.len() + end) as u64).unwrap();
    }

    /// The number of parameters.
    pub fn parameters(self) -> usize {
        self.shapes().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// The names and shapes of PixArt-α's tensors.
    fn shapes(self) -> Vec<(String, Vec<usize>)> {
        let dim = self.heads * HEAD_DIM;
        let mut shapes = vec![
            ("pos_embed.proj.weight".into(), vec![dim, 4, 2, 2]),
            ("pos_embed.proj.bias".into(), vec![dim]),
            ("scale_shift_table".into(), vec![2, dim]),
        ];
        let mut linear = |name: String, c_in: usize, c_out: usize| {
            shapes.push((format!("{name}.weight"), vec![c_out, c_in]));
            shapes.push((format!("{name}.bias"), vec![c_out]));
        };
        linear("adaln_single.emb.timestep_embedder.linear_1".into(), 256, dim);
        linear("adaln_single.emb.timestep_embedder.linear_2".into(), dim, dim);
        linear("adaln_single.linear".into(), dim, 6 * dim);
        linear("caption_projection.linear_1".into(), self.caption, dim);
        linear("caption_projection.linear_2".into(), dim, dim);
        linear("proj_out".into(), dim, 32);
        for block in (0..self.blocks).map(|index| format!("transformer_blocks.{index}")) {
            for layer in ["to_q", "to_k", "to_v", "to_out.0"] {
                linear(format!("{block}.attn1.{layer}"), dim, dim);
                linear(format!("{block}.attn2.{layer}"), dim, dim);
            }
            linear(format!("{block}.ff.net.0.proj"), dim, 4 * dim);
            linear(format!("{block}.ff.net.2"), 4 * dim, dim);
        }
        let tables = (0..self.blocks).map(|index| format!("transformer_blocks.{index}.scale_shift_table"));
        shapes.extend(tables.map(|name| (name, vec![6, dim])));
        shapes
    }
}

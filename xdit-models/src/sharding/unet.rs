//! The sharding of UNets.

use burn::tensor::DType;
use xdit_core::placement::{Placement, Run};
use xdit_core::plan::cost::{BlockExchanges, LevelExchanges, RowExchanges};

use super::Sharded;
use crate::unet::{Level, UNetConfig};

impl Sharded for UNetConfig {
    /// None: heads differ by level.
    fn placements(&self) -> Vec<(&'static str, Placement)> {
        Vec::new()
    }

    /// Attention is sharded by heads, and the feed-forward by features. Convolutions are whole on each rank.
    fn placements_by_level(&self) -> Vec<(String, Placement)> {
        let levels = self.levels.len();
        let mut placements = Vec::new();
        let mut place = |block: String, level: &Level| {
            let at = |name: &str| format!("{block}.attentions.*.transformer_blocks.*.{name}");
            let unit = level.head_dim();
            for attention in ["attn1", "attn2"] {
                for name in ["to_q", "to_k", "to_v"] {
                    placements.push((at(&format!("{attention}.{name}")), Placement::Outputs { unit }));
                }
                placements.push((at(&format!("{attention}.to_out.0")), Placement::Inputs { unit }));
            }
            // Values and gates.
            let half = Run { features: 4 * level.channels, unit: 1 };
            placements.push((at("ff.net.0.proj"), Placement::ConcatenatedOutputs(vec![half; 2])));
            placements.push((at("ff.net.2"), Placement::Inputs { unit: 1 }));
        };
        for (index, level) in self.levels.iter().enumerate() {
            if level.down > 0 {
                place(format!("down_blocks.{index}"), level);
            }
            if level.up > 0 {
                place(format!("up_blocks.{}", levels - 1 - index), level);
            }
        }
        place("mid_block".to_owned(), &self.levels[levels - 1]);
        placements
    }

    /// All exchanges of the one block are [inside of it](Sharded::levels).
    fn exchanges(&self) -> Vec<BlockExchanges> {
        vec![BlockExchanges { attentions: 0, image_sums: 0, text_sums: 0 }]
    }

    /// A sum follows each attention and feed-forward.
    fn levels(&self, grid: [usize; 2]) -> Vec<LevelExchanges> {
        let of_level = |(index, [rows, columns]): (usize, [usize; 2])| {
            let (level, inner) = (&self.levels[index], index + 1 == self.levels.len());
            let [down, up] = [self.layers_per_block * level.down, (self.layers_per_block + 1) * level.up];
            let attentions = down + up + if inner { level.layers } else { 0 };
            let (heads, head_dim) = (level.heads, level.head_dim());
            LevelExchanges { tokens: rows * columns, heads, head_dim, attentions, image_sums: 3 * attentions }
        };
        self.grids(grid).into_iter().enumerate().map(of_level).filter(|level| level.attentions > 0).collect()
    }

    /// A convolution sends its border rows to both neighbours, except for the one that halves the rows, which needs those
    /// above only. A group norm sends mean and deviation of each group, in f32, to all.
    fn rows(&self, grid: [usize; 2], dtype: DType) -> RowExchanges {
        let (grids, last) = (self.grids(grid), self.levels.len() - 1);
        let columns = |index: usize| grids[index][1];
        // Elements of the rows that both neighbours get, those that the one below gets in addition, and norms.
        let (mut both, mut below, mut norms) = (0, 0, 0);
        let mut resnet = |c_in: usize, c_out: usize, index: usize, layers: usize| {
            both += (c_in + c_out) * columns(index);
            norms += 2 + usize::from(layers > 0);
            c_out
        };
        let mut c = self.levels[0].channels;
        let mut waiting = vec![c];
        for (index, level) in self.levels.iter().enumerate() {
            for _ in 0..self.layers_per_block {
                c = resnet(c, level.channels, index, level.down);
                waiting.push(c);
            }
            if index < last {
                below += c * columns(index);
                waiting.push(c);
            }
        }
        c = resnet(c, c, last, self.levels[last].layers);
        c = resnet(c, c, last, 0);
        let mut doubled = 0;
        for (index, level) in self.levels.iter().enumerate().rev() {
            for _ in 0..self.layers_per_block + 1 {
                let skip = waiting.pop().expect("an image waits for each block on the way out");
                c = resnet(c + skip, level.channels, index, level.up);
            }
            if index > 0 {
                // Columns that do not simply double are doubled before the exchange.
                let (own, next) = (columns(index), columns(index - 1));
                doubled += c * if 2 * own == next { own } else { next };
            }
        }
        both += doubled + (self.spec.channels + c) * columns(0);
        RowExchanges {
            up: both * dtype.size(),
            down: (both + below) * dtype.size(),
            all: (norms + 1) * 2 * self.norm_num_groups * DType::F32.size(),
        }
    }
}

impl UNetConfig {
    /// The rows and columns of each level, for a latent of so many.
    fn grids(&self, grid: [usize; 2]) -> Vec<[usize; 2]> {
        let halved = |grid: &[usize; 2]| Some(grid.map(|side| side.div_ceil(2)));
        std::iter::successors(Some(grid), halved).take(self.levels.len()).collect()
    }
}

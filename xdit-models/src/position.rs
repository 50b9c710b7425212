//! Fixed position embeddings.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, Device, Tensor, TensorData};
use xdit_core::tokens::Positions;

/// A cache of position embeddings, by the tokens that they belong to.
///
/// All steps, blocks and pictures of a model share it: a picture has only a few different sets of tokens, and
/// computing their embeddings in every step would cost more than applying them. The cache holds the embeddings for one
/// picture size at a time.
pub struct PositionCache<V>(Arc<Mutex<Vec<(Positions, V)>>>);

impl<V: Clone> PositionCache<V> {
    /// The embedding of the tokens at `positions`, computed by `make` on first use.
    pub fn get(&self, positions: &Positions, make: impl FnOnce() -> V) -> V {
        // A panic in `make` leaves the cache unchanged, so a poisoned lock is safe to use.
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = made.iter().find(|(known, _)| known == positions) {
            return known.clone();
        }
        let new = make();
        made.retain(|(known, _)| known.extent() == positions.extent());
        made.push((positions.clone(), new.clone()));
        new
    }
}

impl<V> Clone for PositionCache<V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<V> Default for PositionCache<V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<V> fmt::Debug for PositionCache<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PositionCache").finish_non_exhaustive()
    }
}

/// A two-dimensional sine-cosine embedding, with its grid stretched to the size that the model was trained on.
///
/// # Source
/// ViT's embedding as in MAE (He et al. 2021) with PixArt's interpolation; diffusers' `PatchEmbed`.
#[derive(Clone, Copy, Debug)]
pub struct SinCos2d {
    /// The number of features of a token, a multiple of 4.
    pub dim: usize,
    /// The side, in tokens, of the images that the model was trained on.
    pub base_size: usize,
    /// The factor by which the grid is compressed.
    pub interpolation_scale: f32,
}

impl SinCos2d {
    /// The embedding of each token: its column in the first half of the features, and its row in the second.
    ///
    /// # Shapes
    /// Result `[1, n, dim]`, f32.
    pub fn embed(&self, positions: &Positions, device: &Device) -> Tensor<3> {
        let [_, rows, columns] = positions.extent();
        let (by_row, by_column) = (self.table(rows), self.table(columns));
        let half = self.dim / 2;
        let mut data = Vec::with_capacity(positions.ids().len() * self.dim);
        for &[_, row, column] in positions.ids() {
            data.extend_from_slice(&by_column[column as usize * half..][..half]);
            data.extend_from_slice(&by_row[row as usize * half..][..half]);
        }
        Tensor::from_data(TensorData::new(data, [1, positions.ids().len(), self.dim]), (device, DType::F32))
    }

    /// The embedding of each of `count` positions along one direction: `dim / 4` sines, then as many cosines.
    fn table(&self, count: usize) -> Vec<f32> {
        let quarter = self.dim / 4;
        let stretch = (count as f64 / self.base_size as f64) as f32;
        let mut table = Vec::with_capacity(count * 2 * quarter);
        for place in 0..count {
            let place = f64::from(place as f32 / stretch / self.interpolation_scale);
            let angles = || (0..quarter).map(|i| place / 10000f64.powf(i as f64 / quarter as f64));
            table.extend(angles().map(|angle| angle.sin() as f32));
            table.extend(angles().map(|angle| angle.cos() as f32));
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn an_embedding_is_made_once_for_pictures_of_one_size() {
        let (cache, made) = (PositionCache::default(), Cell::new(0));
        let get = |positions: &Positions| {
            cache.get(positions, || {
                made.set(made.get() + 1);
                positions.ids().len()
            })
        };
        let whole = Positions::grid(4, 6);
        let patches =
            [whole.select(std::slice::from_ref(&(0..12))), whole.select(std::slice::from_ref(&(12..24)))];
        for _ in 0..3 {
            assert_eq!(get(&Positions::grid(4, 6)), 24);
            assert_eq!(patches.each_ref().map(get), [12, 12]);
        }
        assert_eq!(made.get(), 3);

        assert_eq!(get(&Positions::grid(6, 4)), 24);
        assert_eq!(made.get(), 4, "the same tokens of another picture are others");
        assert_eq!(cache.0.lock().unwrap().len(), 1, "only one size is kept");
    }

    #[test]
    fn a_failure_leaves_the_cache_as_it_was() {
        let (cache, positions) = (PositionCache::default(), Positions::grid(1, 1));
        let failed = catch_unwind(AssertUnwindSafe(|| cache.get(&positions, || panic!("on purpose"))));
        assert!(failed.is_err());
        assert_eq!(cache.get(&positions, || 5), 5);
    }
}

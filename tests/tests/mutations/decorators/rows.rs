//! A UNet with a mistake where the rows of its image mix, or in a skip connection inside of it.

use std::cell::{Cell, RefCell};

use burn::tensor::Tensor;
use xdit_core::attention::{Attention, Qkv, Site};
use xdit_core::rows::{Rows, Whole};
use xdit_core::transformer::Transformer;
use xdit_kernels::{Affine, Conv2d, Moments};
use xdit_models::unet::UNet;
use xdit_tests::world::Job;
use xdit_tests::wrapped::{Wrapped, wrapped};

/// The mistake, in each pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// In the convolution of this number, a rank's rows border on zeros instead of its neighbours' rows.
    ZerosAtBorders(usize),
    /// The convolution of this number sees a rank's rows in another order.
    RowsMoved(usize),
    /// The group norm of this number has the moments of a rank's own rows.
    OwnMoments(usize),
    /// The block of this number on the way out, among those of the outermost level, takes the image before the first
    /// block in place of its skip connection.
    SkipOfFirstImage(usize),
    /// The skip connection of this number has its rows in another order.
    SkipRowsMoved(usize),
}

/// The run of `job` with the mistake `mistake`, if any, on all ranks.
pub fn with_rows(job: Job<UNet>, mistake: Option<Mistake>) -> Job<Wrapped<UNet>> {
    wrapped(job, move || {
        Box::new(move |unet: &UNet, index, hidden, context, attention| match mistake {
            Some(mistake) => {
                let mut mutant = Mutant {
                    attention,
                    mistake,
                    convolutions: Cell::new(0),
                    norms: Cell::new(0),
                    joined: Cell::new(0),
                    first: RefCell::new(None),
                };
                unet.block(index, hidden, context, &mut mutant)
            }
            None => unet.block(index, hidden, context, attention),
        })
    })
}

/// The attention of one pass, whose rows have the mistake.
struct Mutant<'a> {
    attention: &'a mut dyn Attention,
    mistake: Mistake,
    /// The numbers of convolutions and norms so far, and of joined images in the outermost level.
    convolutions: Cell<usize>,
    norms: Cell<usize>,
    joined: Cell<usize>,
    /// The image before the first block.
    first: RefCell<Option<Tensor<4>>>,
}

/// The last row first.
fn moved(x: Tensor<4>) -> Tensor<4> {
    let rows = x.dims()[2];
    Tensor::cat(vec![x.clone().narrow(2, rows - 1, 1), x.narrow(2, 0, rows - 1)], 2)
}

/// The value of a counter before it is raised.
fn next(count: &Cell<usize>) -> usize {
    count.replace(count.get() + 1)
}

impl Mutant<'_> {
    /// Whether `x` is an image of the outermost level with a skip connection joined to it.
    fn is_joined(&self, x: &Tensor<4>) -> bool {
        let first = self.first.borrow();
        let outermost = first.as_ref().map(Tensor::dims);
        let [_, c, rows, columns] = x.dims();
        outermost.is_some_and(|[_, own, y, x]| [rows, columns] == [y, x] && c > own)
    }

    /// The image with the skip connection of this mistake, if `x` is one.
    fn with_skip(&self, x: Tensor<4>) -> Tensor<4> {
        // A norm is the first to see a joined image.
        let now = |index: usize| self.is_joined(&x) && self.joined.get() == index + 1;
        let (Mistake::SkipOfFirstImage(index) | Mistake::SkipRowsMoved(index)) = self.mistake else {
            return x;
        };
        if !now(index) {
            return x;
        }
        let first = self.first.borrow().clone().expect("made before all others");
        let (all, c) = (x.dims()[1], first.dims()[1]);
        let skip = match self.mistake {
            Mistake::SkipOfFirstImage(_) => first,
            _ => moved(x.clone().narrow(1, all - c, c)),
        };
        Tensor::cat(vec![x.narrow(1, 0, all - c), skip], 1)
    }
}

impl Attention for Mutant<'_> {
    fn attend(&mut self, site: Site, image: Qkv, text: Option<Qkv>) -> (Tensor<4>, Option<Tensor<4>>) {
        self.attention.attend(site, image, text)
    }

    fn rows(&self) -> &dyn Rows {
        self
    }
}

impl Rows for Mutant<'_> {
    fn conv(
        &self,
        conv: &Conv2d,
        x: Tensor<4>,
        norm: Option<&Affine>,
        residual: Option<Tensor<4>>,
    ) -> Tensor<4> {
        let (inner, x, index) = (self.attention.rows(), self.with_skip(x), next(&self.convolutions));
        let y = match self.mistake {
            Mistake::ZerosAtBorders(wrong) if wrong == index => Whole.conv(conv, x, norm, residual),
            Mistake::RowsMoved(wrong) if wrong == index => inner.conv(conv, moved(x), norm, residual),
            _ => inner.conv(conv, x, norm, residual),
        };
        if index == 0 {
            self.first.replace(Some(y.clone()));
        }
        y
    }

    fn moments(&self, x: Tensor<4>, groups: usize) -> Moments {
        if self.is_joined(&x) {
            next(&self.joined);
        }
        let x = self.with_skip(x);
        match self.mistake {
            Mistake::OwnMoments(wrong) if wrong == next(&self.norms) => Whole.moments(x, groups),
            _ => self.attention.rows().moments(x, groups),
        }
    }

    fn attend(&self, pixels: Qkv) -> Tensor<4> {
        self.attention.rows().attend(pixels)
    }
}

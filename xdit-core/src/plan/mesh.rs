//! The mesh: the arrangement of ranks along the axes of parallelism.

use std::fmt;

use xdit_comm::Group;

/// An axis of the mesh; the variants are ordered from the outermost to the innermost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Axis {
    /// Pictures.
    Data,
    /// Guidance branches.
    Cfg,
    /// Runs of blocks.
    Pipeline,
    /// Tokens, with keys and values passed around.
    Ring,
    /// Tokens, exchanged for heads around attention.
    Ulysses,
    /// Heads and features.
    Tensor,
}

impl Axis {
    /// All axes, outermost first.
    pub const ALL: [Self; 6] =
        [Self::Data, Self::Cfg, Self::Pipeline, Self::Ring, Self::Ulysses, Self::Tensor];

    /// The axis' short name, which also labels its groups' traffic.
    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "dp",
            Self::Cfg => "cfg",
            Self::Pipeline => "pp",
            Self::Ring => "ring",
            Self::Ulysses => "ulysses",
            Self::Tensor => "tp",
        }
    }
}

/// The number of ranks along each axis. The tensor axis is innermost: its ranks are neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mesh {
    degrees: [usize; 6],
}

impl Default for Mesh {
    /// One rank.
    fn default() -> Self {
        Self { degrees: [1; 6] }
    }
}

impl Mesh {
    /// The same mesh with `degree` ranks along `axis`.
    ///
    /// # Panics
    /// If `degree` is 0.
    #[must_use]
    pub fn with(mut self, axis: Axis, degree: usize) -> Self {
        assert!(degree > 0, "an axis has at least one rank");
        self.degrees[axis as usize] = degree;
        self
    }

    /// Ranks along `axis`.
    pub fn degree(&self, axis: Axis) -> usize {
        self.degrees[axis as usize]
    }

    /// The number of ranks. The product saturates, so that absurd degrees still exceed every limit.
    pub fn size(&self) -> usize {
        self.degrees.iter().fold(1, |ranks, &degree| ranks.saturating_mul(degree))
    }

    /// The number of ranks that share an image's tokens: ring × ulysses, saturating like [`size`](Self::size).
    pub fn sequence_degree(&self) -> usize {
        self.degree(Axis::Ring).saturating_mul(self.degree(Axis::Ulysses))
    }

    /// The difference in rank between neighbours along `axis`.
    fn stride(&self, axis: Axis) -> usize {
        self.degrees[axis as usize + 1..].iter().product()
    }

    /// The coordinate of `rank` along `axis`.
    pub fn coordinate(&self, rank: usize, axis: Axis) -> usize {
        rank / self.stride(axis) % self.degree(axis)
    }

    /// The index of `rank` among the ranks that share an image's tokens.
    pub fn sequence_coordinate(&self, rank: usize) -> usize {
        self.coordinate(rank, Axis::Ring) * self.degree(Axis::Ulysses) + self.coordinate(rank, Axis::Ulysses)
    }

    /// The ranks that differ from `rank` along `axes` only, in rank order.
    pub fn group(&self, rank: usize, axes: &[Axis]) -> Group {
        let same = |other: usize| {
            Axis::ALL.into_iter().all(|axis| {
                axes.contains(&axis) || self.coordinate(other, axis) == self.coordinate(rank, axis)
            })
        };
        let label = axes.iter().map(|axis| axis.name()).collect::<Vec<_>>().join("x");
        Group::new(label, (0..self.size()).filter(|&other| same(other)))
    }

    /// All [groups](Self::group) along `axes`: each rank is in one of them.
    pub fn groups(&self, axes: &[Axis]) -> Vec<Group> {
        let is_first = |&rank: &usize| self.group(rank, axes).ranks()[0] == rank;
        (0..self.size()).filter(is_first).map(|rank| self.group(rank, axes)).collect()
    }
}

impl fmt::Display for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<_> = Axis::ALL
            .into_iter()
            .filter(|axis| self.degree(*axis) > 1)
            .map(|axis| format!("{} {}", axis.name(), self.degree(axis)))
            .collect();
        if parts.is_empty() { f.write_str("1 rank") } else { f.write_str(&parts.join(" × ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensor_ranks_are_neighbours_and_data_ranks_are_far_apart() {
        let mesh = Mesh::default().with(Axis::Data, 2).with(Axis::Pipeline, 3).with(Axis::Tensor, 2);
        assert_eq!(mesh.size(), 12);
        assert_eq!(mesh.group(5, &[Axis::Tensor]).ranks(), [4, 5]);
        assert_eq!(mesh.group(5, &[Axis::Pipeline]).ranks(), [1, 3, 5]);
        assert_eq!(mesh.group(5, &[Axis::Data]).ranks(), [5, 11]);
        assert_eq!(mesh.coordinate(11, Axis::Data), 1);
        assert_eq!(mesh.coordinate(11, Axis::Pipeline), 2);
    }

    #[test]
    fn ring_is_outside_ulysses() {
        let mesh = Mesh::default().with(Axis::Ring, 2).with(Axis::Ulysses, 2);
        assert_eq!((0..4).map(|rank| mesh.sequence_coordinate(rank)).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(mesh.group(3, &[Axis::Ring]).ranks(), [1, 3]);
        assert_eq!(mesh.group(3, &[Axis::Ring, Axis::Ulysses]).ranks(), [0, 1, 2, 3]);
    }
}

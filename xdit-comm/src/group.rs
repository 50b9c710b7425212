//! Ordered sets of ranks.

use std::fmt;
use std::sync::Arc;

/// An ordered list of world ranks that communicate, with the label under which their traffic is counted.
///
/// It is a plain value, made without communication and equal on every member. The position in the list is the rank
/// inside the group. The same ranks with different labels are different groups.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Group {
    label: Arc<str>,
    ranks: Arc<[usize]>,
}

impl Group {
    /// A group of the world ranks `ranks`, in this order, with the label `label`.
    ///
    /// # Panics
    /// If `ranks` is empty or names a rank twice.
    pub fn new(label: impl Into<Arc<str>>, ranks: impl IntoIterator<Item = usize>) -> Self {
        let group = Self { label: label.into(), ranks: ranks.into_iter().collect() };
        assert!(!group.ranks.is_empty(), "the group {group} has no ranks");
        for (index, rank) in group.ranks.iter().enumerate() {
            assert!(!group.ranks[..index].contains(rank), "the group {group} names rank {rank} twice");
        }
        group
    }

    /// Ranks `0..size` under the label `world`.
    ///
    /// # Panics
    /// If `size` is zero.
    pub fn world(size: usize) -> Self {
        Self::new("world", 0..size)
    }

    /// The label of its traffic, such as the name of a mesh axis.
    pub fn label(&self) -> &Arc<str> {
        &self.label
    }

    /// World ranks in group order.
    pub fn ranks(&self) -> &[usize] {
        &self.ranks
    }

    /// The number of ranks.
    pub fn size(&self) -> usize {
        self.ranks.len()
    }

    /// The position of the world rank `rank`, if it is in the group.
    pub fn position(&self, rank: usize) -> Option<usize> {
        self.ranks.iter().position(|&member| member == rank)
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {:?}", self.label, self.ranks)
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Group({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_the_rank() {
        let group = Group::new("ring", [4, 0, 2]);
        assert_eq!(group.size(), 3);
        assert_eq!([4, 0, 2].map(|rank| group.position(rank)), [Some(0), Some(1), Some(2)]);
        assert_eq!(group.position(1), None);
        assert_ne!(group, Group::new("ring", [0, 2, 4]));
        assert_ne!(group, Group::new("tp", [4, 0, 2]));
    }

    #[test]
    #[should_panic(expected = "the group `tp` [1, 2, 1] names rank 1 twice")]
    fn a_rank_twice_is_refused() {
        Group::new("tp", [1, 2, 1]);
    }
}

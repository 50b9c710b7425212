//! Links between stages of which two are crossed: each receiver gets the other's messages.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use burn::tensor::Tensor;
use xdit_comm::{Error, Group};
use xdit_core::link::{InFlight, Link, Transfer};

/// The time after which a message that should have been sent is missing.
const PATIENCE: Duration = Duration::from_secs(60);

/// The messages of the two links, in the order in which they were sent.
#[derive(Debug, Default)]
struct Posts {
    sent: Mutex<[VecDeque<Vec<Tensor<1>>>; 2]>,
    more: Condvar,
}

/// Behaves like the inner link, except for two links between stages, whose messages arrive at each other's receivers.
#[derive(Debug)]
pub struct Crossed {
    inner: Arc<dyn Link>,
    edges: [[usize; 2]; 2],
    posts: Arc<Posts>,
}

impl Crossed {
    /// A wrapper for the links of all ranks of a world, each of which is a stage. `edges` are the two links, from the
    /// sending to the receiving stage. The first one's messages must not depend on the second one's having arrived.
    pub fn all(edges: [[usize; 2]; 2]) -> impl Fn(Arc<dyn Link>) -> Arc<dyn Link> + Send + Sync {
        let posts = Arc::<Posts>::default();
        move |inner| Arc::new(Self { inner, edges, posts: posts.clone() })
    }
}

struct Arriving {
    inner: Box<dyn InFlight>,
    posts: Arc<Posts>,
    /// The link whose message arrives.
    from: usize,
}

impl InFlight for Arriving {
    fn is_complete(&mut self) -> bool {
        self.inner.is_complete()
    }

    fn wait(self: Box<Self>) -> Result<Vec<Tensor<1>>, Error> {
        let own = self.inner.wait()?;
        let sent = self.posts.sent.lock().unwrap();
        let empty = |sent: &mut [VecDeque<Vec<Tensor<1>>>; 2]| sent[self.from].is_empty();
        let (mut sent, _) = self.posts.more.wait_timeout_while(sent, PATIENCE, empty).unwrap();
        let other = sent[self.from].pop_front().expect("the other link has as many messages");
        let sizes = |parts: &[Tensor<1>]| parts.iter().map(Tensor::dims).collect::<Vec<_>>();
        assert_eq!(sizes(&own), sizes(&other), "only the numbers are wrong");
        Ok(other)
    }
}

impl Link for Crossed {
    fn group(&self) -> &Group {
        self.inner.group()
    }

    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn split(&self, groups: &[Group]) -> Result<Option<Arc<dyn Link>>, Error> {
        let link = |inner| -> Arc<dyn Link> {
            Arc::new(Self { inner, edges: self.edges, posts: self.posts.clone() })
        };
        Ok(self.inner.split(groups)?.map(link))
    }

    fn transfer(&self, transfer: Transfer) -> Box<dyn InFlight> {
        let Some(edge) = self.edges.iter().position(|edge| *self.inner.group().ranks() == *edge) else {
            return self.inner.transfer(transfer);
        };
        if self.rank() == 0 {
            let parts = transfer.sends.iter().map(|(_, x)| x.clone()).collect();
            self.posts.sent.lock().unwrap()[edge].push_back(parts);
            self.posts.more.notify_all();
            return self.inner.transfer(transfer);
        }
        Box::new(Arriving { inner: self.inner.transfer(transfer), posts: self.posts.clone(), from: 1 - edge })
    }

    fn sum(&self, x: Tensor<1>) -> Box<dyn InFlight> {
        self.inner.sum(x)
    }

    fn check(&self) -> Result<(), Error> {
        self.inner.check()
    }
}

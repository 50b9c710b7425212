//! Little programs of operations, run by a world and, one rank after the other, by a naive reference.

use std::collections::HashMap;

use xdit_comm::{Buffer, BufferSpec, Comm, DType, Error, Group, Pending, wait_all};

use crate::patterns::{all_gather, all_to_all, broadcast, recv, send, send_recv};

/// What the ranks of each group do in one step.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    AllGather,
    AllToAll,
    Broadcast,
    /// To the next, from the previous, as one operation.
    Rotate,
    /// To the next and to the previous, as four operations, the receives posted first.
    Halo,
    Barrier,
}

pub const OPS: [Op; 6] = [Op::AllGather, Op::AllToAll, Op::Broadcast, Op::Rotate, Op::Halo, Op::Barrier];

/// One operation in disjoint groups at once.
#[derive(Clone, Debug)]
pub struct Step {
    pub op: Op,
    /// All ranks, in any order; each run of `degree` of them is a group, the last one may be shorter.
    pub order: Vec<usize>,
    pub degree: usize,
    /// Decides on lengths, values and root.
    pub salt: u64,
}

pub type Values = Vec<Vec<f32>>;

fn hash(words: &[u64]) -> u64 {
    words.iter().fold(0xcbf2_9ce4_8422_2325, |state, &word| {
        let mixed = (state ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ (mixed >> 29)
    })
}

impl Step {
    /// The group of `rank`, as a list of ranks.
    fn members(&self, rank: usize) -> &[usize] {
        self.order.chunks(self.degree).find(|group| group.contains(&rank)).unwrap()
    }

    /// How much goes from `from` to `to`: 0 to 6 elements, different for each pair.
    fn len(&self, from: usize, to: usize) -> usize {
        (hash(&[self.salt, from as u64, to as u64]) % 7) as usize
    }

    /// What goes from `from` to `to`.
    fn values(&self, from: usize, to: usize, len: usize) -> Vec<f32> {
        let value = |index: usize| {
            let random = hash(&[self.salt, from as u64, to as u64, index as u64, 1]);
            ((random >> 8) as i16 as f32) * 2f32.powi((random % 24) as i32 - 12)
        };
        (0..len).map(value).collect()
    }

    fn root(&self, members: usize) -> usize {
        (self.salt % members as u64) as usize
    }

    /// Issues the step on one rank.
    fn issue(&self, comm: &Comm, me: usize) -> Pending<Vec<Buffer>> {
        let members = self.members(me);
        let (here, size) = (comm.rank(), comm.size());
        let (next, previous) = ((here + 1) % size, (here + size - 1) % size);
        let part = |to: usize, len: usize| Buffer::from_vec(self.values(me, to, len));
        let spec = |len: usize| BufferSpec::new(DType::F32, len);
        let to = |position: usize| part(members[position], self.len(me, members[position]));
        let from = |position: usize| spec(self.len(members[position], me));
        match self.op {
            Op::AllGather => {
                let lens: Vec<_> = members.iter().map(|&rank| self.len(rank, 0)).collect();
                all_gather(comm, part(0, lens[here]), &lens)
            }
            Op::AllToAll => {
                let parts = (0..size).map(to).collect();
                let lens: Vec<_> = members.iter().map(|&rank| self.len(rank, me)).collect();
                all_to_all(comm, parts, &lens)
            }
            Op::Broadcast => {
                let (root, len) = (self.root(size), self.len(0, 0));
                broadcast(comm, root, (root == here).then(|| part(0, len)), spec(len)).map(|it| vec![it])
            }
            Op::Rotate => send_recv(comm, vec![(next, to(next))], vec![(previous, from(previous))]),
            Op::Halo => {
                let received = [recv(comm, previous, from(previous)), recv(comm, next, from(next))];
                let sent = [send(comm, next, to(next)), send(comm, previous, to(previous))];
                Pending::new(|| {
                    wait_all(sent)?;
                    wait_all(received)
                })
            }
            Op::Barrier => all_gather(comm, Buffer::empty(DType::U8), &vec![0; size]).map(|_| Vec::new()),
        }
    }

    /// What the step gives `me`, from the inputs of all ranks.
    fn expected(&self, me: usize) -> Values {
        let members = self.members(me);
        let size = members.len();
        let here = members.iter().position(|&rank| rank == me).unwrap();
        let (next, previous) = (members[(here + 1) % size], members[(here + size - 1) % size]);
        let sent = |from: usize, to: usize| self.values(from, to, self.len(from, to));
        match self.op {
            Op::AllGather => members.iter().map(|&from| self.values(from, 0, self.len(from, 0))).collect(),
            Op::AllToAll => members.iter().map(|&from| sent(from, me)).collect(),
            Op::Broadcast => vec![self.values(members[self.root(size)], 0, self.len(0, 0))],
            Op::Rotate => vec![sent(previous, me)],
            Op::Halo => vec![sent(previous, me), sent(next, me)],
            Op::Barrier => Vec::new(),
        }
    }
}

/// When a program waits for what it has issued.
#[derive(Clone, Copy, Debug)]
pub enum Waits {
    /// For each step before the next one.
    OneByOne,
    /// After all steps, the last one first.
    LastFirst,
}

/// Runs all steps on one rank.
pub fn run(steps: &[Step], waits: Waits, world: &Comm) -> Result<Vec<Values>, Error> {
    let me = world.rank();
    let mut comms: HashMap<Vec<Group>, Comm> = HashMap::new();
    let mut issue = |step: &Step| {
        let groups = step.order.chunks(step.degree).map(|ranks| Group::new("axis", ranks.iter().copied()));
        let groups: Vec<_> = groups.collect();
        if !comms.contains_key(&groups) {
            comms.insert(groups.clone(), world.split(&groups)?.expect("each rank is in a group"));
        }
        Ok(step.issue(&comms[&groups], me))
    };
    let received = match waits {
        Waits::OneByOne => steps.iter().map(|step| issue(step)?.wait()).collect::<Result<Vec<_>, Error>>()?,
        Waits::LastFirst => {
            let pendings = steps.iter().map(issue).collect::<Result<Vec<_>, Error>>()?;
            let mut received = wait_all(pendings.into_iter().rev())?;
            received.reverse();
            received
        }
    };
    let values = |buffer: &Buffer| buffer.elements().into_owned();
    Ok(received.iter().map(|buffers| buffers.iter().map(values).collect()).collect())
}

/// What [`run`] must return on each rank.
pub fn expected(steps: &[Step], size: usize) -> Vec<Vec<Values>> {
    (0..size).map(|rank| steps.iter().map(|step| step.expected(rank)).collect()).collect()
}

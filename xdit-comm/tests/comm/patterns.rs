//! Collectives and messages, as the exchanges that they are.

use xdit_comm::{Buffer, BufferSpec, Comm, DType, Operation, Pending, Result};

fn others(comm: &Comm) -> impl Iterator<Item = usize> + use<> {
    let rank = comm.rank();
    (0..comm.size()).filter(move |&peer| peer != rank)
}

/// What the other ranks send, with this rank's own part in its place.
fn with_own(pending: Pending<Vec<Buffer>>, rank: usize, own: Buffer) -> Pending<Vec<Buffer>> {
    pending.map(move |mut parts| {
        parts.insert(rank, own);
        parts
    })
}

fn specs(comm: &Comm, dtype: DType, lens: &[usize]) -> Vec<(usize, BufferSpec)> {
    others(comm).map(|from| (from, BufferSpec::new(dtype, lens[from]))).collect()
}

pub fn all_gather(comm: &Comm, part: Buffer, lens: &[usize]) -> Pending<Vec<Buffer>> {
    let sends = others(comm).map(|to| (to, part.clone())).collect();
    let recvs = specs(comm, part.dtype(), lens);
    with_own(comm.exchange(Operation::AllGather, sends, recvs), comm.rank(), part)
}

pub fn all_to_all(comm: &Comm, mut parts: Vec<Buffer>, lens: &[usize]) -> Pending<Vec<Buffer>> {
    let own = parts.remove(comm.rank());
    let (sends, recvs) = (others(comm).zip(parts).collect(), specs(comm, own.dtype(), lens));
    with_own(comm.exchange(Operation::AllToAll, sends, recvs), comm.rank(), own)
}

/// The root brings a buffer, and no other rank does.
pub fn broadcast(comm: &Comm, root: usize, buffer: Option<Buffer>, spec: BufferSpec) -> Pending<Buffer> {
    let receives = if buffer.is_none() { vec![(root, spec)] } else { Vec::new() };
    let sends = buffer.iter().flat_map(|it| others(comm).map(|to| (to, it.clone()))).collect();
    let arriving = comm.exchange(Operation::Broadcast, sends, receives);
    arriving.map(move |mut parts| buffer.unwrap_or_else(|| parts.remove(0)))
}

pub fn send(comm: &Comm, to: usize, buffer: Buffer) -> Pending<()> {
    comm.exchange(Operation::Send, vec![(to, buffer)], Vec::new()).map(drop)
}

pub fn recv(comm: &Comm, from: usize, spec: BufferSpec) -> Pending<Buffer> {
    comm.exchange(Operation::Recv, Vec::new(), vec![(from, spec)]).map(|mut parts| parts.remove(0))
}

pub fn send_recv(
    comm: &Comm,
    sends: Vec<(usize, Buffer)>,
    recvs: Vec<(usize, BufferSpec)>,
) -> Pending<Vec<Buffer>> {
    comm.exchange(Operation::SendRecv, sends, recvs)
}

/// Waits until all ranks have come here.
pub fn barrier(comm: &Comm) -> Result<()> {
    all_gather(comm, Buffer::empty(DType::U8), &vec![0; comm.size()]).wait().map(drop)
}

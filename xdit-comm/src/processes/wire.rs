//! Bytes on a connection between two processes.
//!
//! A frame is a head, which says what it is, and a body: `[head length: u32][body length: u64][head][body]`. All
//! numbers are little-endian. No length is trusted: a body is read only up to the limit of its kind, and memory grows
//! with the bytes that arrive, not with the length that is announced.

use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;

use crate::fabric::Address;
use crate::{BufferSpec, DType, Operation};

/// The most bytes in the head of a frame, and in a message of the meeting.
const MAX_HEAD: usize = 64 << 10;
/// The most bytes in a text, such as the cause of a failure.
const MAX_TEXT: usize = 32 << 10;
/// The most bytes in a note: a picture with its latents, or the trace of a rank.
const MAX_NOTE: u64 = 4 << 30;
/// The most bytes in a message between ranks.
const MAX_MESSAGE: u64 = 64 << 30;
/// The memory that is reserved before the bytes of a body arrive.
const RESERVE: u64 = 16 << 20;

/// The kind of a frame, with everything but its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// A message from one rank to another.
    Message(MessageHead),
    /// The exit of a rank. If it failed, the world rank of the first cause, and whether another
    /// process cancelled the job; the body is the text of the cause.
    Exit { world: u64, rank: usize, cause: Option<usize>, cancelled: bool },
    /// A note, which the body holds.
    Note { topic: u64 },
    /// The end of the whole job, for the reason in the body.
    Abort { cancelled: bool },
    /// A sign of life.
    Heartbeat,
    /// The orderly end of the connection.
    Goodbye,
}

/// The head of a message between ranks, whose body is the bytes of a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MessageHead {
    pub world: u64,
    pub address: Address,
    pub operation: Operation,
    /// Label of the group.
    pub group: Arc<str>,
    pub spec: BufferSpec,
}

/// Writes numbers and texts.
#[derive(Default)]
pub(super) struct Encoder(pub Vec<u8>);

impl Encoder {
    pub fn number(&mut self, number: u64) -> &mut Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    /// Writes `text`, shortened if necessary.
    pub fn text(&mut self, text: &str) -> &mut Self {
        let text = shortened(text);
        self.number(text.len() as u64);
        self.0.extend(text.as_bytes());
        self
    }
}

/// Reads numbers and texts.
pub(super) struct Decoder<'a>(pub &'a [u8]);

impl Decoder<'_> {
    pub fn number(&mut self) -> io::Result<u64> {
        let (number, rest) = self.0.split_first_chunk().ok_or_else(|| garbled("a number is missing"))?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*number))
    }

    pub fn size(&mut self) -> io::Result<usize> {
        usize::try_from(self.number()?).map_err(|_| garbled("a number is too large"))
    }

    pub fn text(&mut self) -> io::Result<String> {
        let len = self.size()?;
        let (text, rest) = self.0.split_at_checked(len).ok_or_else(|| garbled("a text is cut off"))?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).map_err(|_| garbled("a text is not UTF-8"))
    }

    fn end(&self) -> io::Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(garbled("a head is too long")) }
    }
}

/// `text`, cut at a character if it is very long.
pub(super) fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

/// An error for bytes that this program would not send.
pub(super) fn garbled(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("garbled data: {what}"))
}

const DTYPES: [DType; 5] = [DType::F32, DType::Bf16, DType::F16, DType::I32, DType::U8];

/// The index of `value` among all values of its type.
fn code<T: PartialEq>(all: &[T], value: &T) -> u64 {
    all.iter().position(|one| one == value).expect("the list is complete") as u64
}

/// The value at `code`.
fn coded<T: Copy>(all: &[T], code: u64) -> io::Result<T> {
    let value = usize::try_from(code).ok().and_then(|code| all.get(code));
    value.copied().ok_or_else(|| garbled("an unknown code"))
}

impl Head {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        match self {
            Self::Message(MessageHead { world, address, operation, group, spec }) => {
                to.number(0).number(*world).number(address.communicator);
                to.number(address.from as u64).number(address.to as u64).number(address.sequence);
                to.number(code(&Operation::ALL, operation)).text(group);
                to.number(code(&DTYPES, &spec.dtype)).number(spec.len as u64);
            }
            Self::Exit { world, rank, cause, cancelled } => {
                to.number(1).number(*world).number(*rank as u64);
                // A rank number is below the largest one, which stands for none.
                to.number(cause.map_or(u64::MAX, |rank| rank as u64)).number((*cancelled).into());
            }
            Self::Note { topic } => drop(to.number(2).number(*topic)),
            Self::Abort { cancelled } => drop(to.number(3).number((*cancelled).into())),
            Self::Heartbeat => drop(to.number(4)),
            Self::Goodbye => drop(to.number(5)),
        }
        to.0
    }

    pub(super) fn decode(bytes: &[u8]) -> io::Result<Self> {
        let mut from = Decoder(bytes);
        let head = match from.number()? {
            0 => Self::Message(MessageHead {
                world: from.number()?,
                address: Address {
                    communicator: from.number()?,
                    from: from.size()?,
                    to: from.size()?,
                    sequence: from.number()?,
                },
                operation: coded(&Operation::ALL, from.number()?)?,
                group: from.text()?.into(),
                spec: BufferSpec::new(coded(&DTYPES, from.number()?)?, from.size()?),
            }),
            1 => Self::Exit {
                world: from.number()?,
                rank: from.size()?,
                cause: Some(from.number()?).filter(|&rank| rank != u64::MAX).map(|rank| rank as usize),
                cancelled: from.number()? != 0,
            },
            2 => Self::Note { topic: from.number()? },
            3 => Self::Abort { cancelled: from.number()? != 0 },
            4 => Self::Heartbeat,
            5 => Self::Goodbye,
            _ => return Err(garbled("an unknown kind of frame")),
        };
        from.end()?;
        Ok(head)
    }

    /// The most bytes in a body of this kind.
    fn max_body(&self) -> u64 {
        match self {
            Self::Message(_) => MAX_MESSAGE,
            Self::Note { .. } => MAX_NOTE,
            Self::Exit { .. } | Self::Abort { .. } => MAX_TEXT as u64,
            Self::Heartbeat | Self::Goodbye => 0,
        }
    }
}

/// Writes a frame.
pub(super) fn write_frame(to: &mut impl Write, head: &[u8], body: &[u8]) -> io::Result<()> {
    let mut start = Vec::with_capacity(12 + head.len());
    start.extend((head.len() as u32).to_le_bytes());
    start.extend((body.len() as u64).to_le_bytes());
    start.extend(head);
    to.write_all(&start)?;
    to.write_all(body)
}

/// Reads the head of a frame, and the length of its body.
pub(super) fn read_head(from: &mut impl Read) -> io::Result<(Head, u64)> {
    let mut lengths = [0; 12];
    from.read_exact(&mut lengths)?;
    let [head, body] = [&lengths[..4], &lengths[4..]]
        .map(|bytes| bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)));
    if head > MAX_HEAD as u64 {
        return Err(garbled("a head is too long"));
    }
    let mut bytes = vec![0; head as usize];
    from.read_exact(&mut bytes)?;
    let head = Head::decode(&bytes)?;
    let announced = match &head {
        Head::Message(message) => message.spec.len.checked_mul(message.spec.dtype.size_bytes()),
        _ => usize::try_from(body).ok(),
    };
    if body > head.max_body() || announced.map(|bytes| bytes as u64) != Some(body) {
        return Err(garbled("the length of a body"));
    }
    Ok((head, body))
}

/// Reads the body of a frame.
pub(super) fn read_body(from: &mut impl Read, len: u64) -> io::Result<Bytes> {
    let mut body = Vec::with_capacity(len.min(RESERVE) as usize);
    if from.take(len).read_to_end(&mut body)? as u64 != len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(body.into())
}

/// Reads the body of a frame that nobody wants.
pub(super) fn skip_body(from: &mut impl Read, len: u64) -> io::Result<()> {
    if io::copy(&mut from.take(len), &mut io::sink())? != len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// The first bytes of every message of a meeting.
const MAGIC: [u8; 8] = *b"xdit net";

/// Writes a message of the meeting.
pub(super) fn write_meeting(mut to: impl Write, message: &Encoder) -> io::Result<()> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend((message.0.len() as u32).to_le_bytes());
    bytes.extend(&message.0);
    to.write_all(&bytes)
}

/// Reads a message of the meeting.
pub(super) fn read_meeting(mut from: impl Read) -> io::Result<Vec<u8>> {
    let (mut magic, mut len) = ([0; 8], [0; 4]);
    from.read_exact(&mut magic)?;
    if magic != MAGIC {
        return Err(garbled("this is not xdit"));
    }
    from.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > MAX_HEAD {
        return Err(garbled("a message is too long"));
    }
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(len: usize) -> Head {
        Head::Message(MessageHead {
            world: 3,
            address: Address { communicator: u64::MAX, from: 1, to: 2, sequence: 9 },
            operation: Operation::SendRecv,
            group: "ring".into(),
            spec: BufferSpec::new(DType::Bf16, len),
        })
    }

    fn frame(head: &Head, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &head.encode(), body).unwrap();
        bytes
    }

    #[test]
    fn frames_arrive_as_sent() {
        for (head, body) in [
            (message(2), &[1, 2, 3, 4][..]),
            (Head::Exit { world: 0, rank: 1, cause: None, cancelled: false }, &[]),
            (Head::Exit { world: 7, rank: 1, cause: Some(0), cancelled: true }, b"out of paper"),
            (Head::Note { topic: 5 }, &[0; 100]),
            (Head::Abort { cancelled: true }, b"interrupted"),
            (Head::Heartbeat, &[]),
            (Head::Goodbye, &[]),
        ] {
            let bytes = frame(&head, body);
            let mut from = &bytes[..];
            let (read, len) = read_head(&mut from).unwrap();
            assert_eq!((read, &read_body(&mut from, len).unwrap()[..]), (head, body));
            assert!(from.is_empty());
            // Cut off anywhere, a frame is an error.
            for cut in 0..bytes.len() {
                let mut from = &bytes[..cut];
                let read = read_head(&mut from).and_then(|(_, len)| read_body(&mut from, len));
                assert!(read.is_err(), "cut at {cut}");
            }
        }
    }

    #[test]
    fn hostile_lengths_are_refused_before_memory_is_reserved() {
        // A body that is not as long as its spec says.
        let error = read_head(&mut &frame(&message(3), &[0; 4])[..]).unwrap_err();
        assert_eq!(error.to_string(), "garbled data: the length of a body");
        // A product that overflows.
        assert!(read_head(&mut &frame(&message(usize::MAX), &[])[..]).is_err());
        // A text, and a heartbeat, of terabytes.
        for head in [Head::Abort { cancelled: false }, Head::Heartbeat, message(1 << 40)] {
            let mut bytes = frame(&head, &[]);
            bytes[4..12].copy_from_slice(&(1u64 << 41).to_le_bytes());
            assert!(read_head(&mut &bytes[..]).is_err(), "{head:?}");
        }
        // A long head.
        assert!(read_head(&mut &[0xff; 12][..]).is_err());
        // A note within its limit that never comes takes no memory to speak of.
        let mut bytes = frame(&Head::Note { topic: 0 }, &[]);
        bytes[4..12].copy_from_slice(&MAX_NOTE.to_le_bytes());
        let mut from = &bytes[..];
        let (_, len) = read_head(&mut from).unwrap();
        assert_eq!(read_body(&mut from, len).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn every_bit_that_flips_in_a_head_is_survived() {
        let bytes = frame(&message(2), &[1, 2, 3, 4]);
        for bit in 0..8 * (bytes.len() - 4) {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // An error or another head, but no panic.
            drop(read_head(&mut &flipped[..]));
        }
    }

    #[test]
    fn strangers_are_noticed() {
        let error = read_meeting(&b"GET / HTTP/1.1\r\n\r\n"[..]).unwrap_err();
        assert_eq!(error.to_string(), "garbled data: this is not xdit");
        let mut bytes = Vec::new();
        write_meeting(&mut bytes, Encoder::default().text("hello")).unwrap();
        let read = read_meeting(&bytes[..]).unwrap();
        assert_eq!(Decoder(&read).text().unwrap(), "hello");
        bytes[8..12].fill(0xff);
        assert!(read_meeting(&bytes[..]).is_err());
    }
}

//! Reads the few fields of a sentencepiece model file that a Unigram tokenizer needs.
//!
//! The file is one protobuf message. Its schema has been stable for years, and only four of its fields are needed,
//! so they are read by hand, without generated code.
//!
//! # Source
//! `sentencepiece_model.proto` of google/sentencepiece: `ModelProto`, `TrainerSpec`, `NormalizerSpec`.

/// A piece of the vocabulary.
#[derive(Debug, PartialEq)]
pub(super) struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: PieceKind,
}

/// The kind of a piece, as far as it matters for tokenizing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PieceKind {
    /// Ordinary, unknown, unused or byte pieces, which only the model produces.
    Normal,
    /// Control tokens such as `<pad>` and `</s>`.
    Control,
    /// A symbol that training keeps whole.
    UserDefined,
}

/// A sentencepiece model.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Model {
    pub pieces: Vec<Piece>,
    /// The normalization rules as a double-array trie; empty if there are none.
    pub charsmap: Vec<u8>,
}

const UNIGRAM: u64 = 1;

impl Model {
    /// Reads a `ModelProto`.
    ///
    /// # Errors
    /// A short description of the fault in `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut model = Self::default();
        // The vocabulary comes first; what follows it shows that the file was not cut between two fields.
        let (mut announced, mut is_whole) = (None, false);
        let mut fields = Fields(bytes);
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (1, Value::Bytes(piece)) => model.pieces.push(parse_piece(piece)?),
                (2, Value::Bytes(trainer)) => announced = Some(check_trainer(trainer)?),
                (3, Value::Bytes(normalizer)) => {
                    is_whole = true;
                    let mut fields = Fields(normalizer);
                    while let Some((number, value)) = fields.next()? {
                        if let (2, Value::Bytes(charsmap)) = (number, value) {
                            model.charsmap = charsmap.to_vec();
                        }
                    }
                }
                _ => {}
            }
        }
        let pieces = model.pieces.len();
        match announced {
            _ if pieces == 0 => Err("it contains no sentencepiece vocabulary".into()),
            Some(announced) if announced > pieces as u64 => {
                Err(format!("it has only {pieces} of {announced} pieces: it was cut"))
            }
            Some(_) if is_whole => Ok(model),
            _ => Err(format!("it ends after {pieces} pieces, before its own options: it was cut")),
        }
    }
}

fn parse_piece(bytes: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: PieceKind::Normal };
    let mut fields = Fields(bytes);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Bytes(text)) => {
                piece.text = String::from_utf8(text.to_vec()).map_err(|_| "a piece is not UTF-8")?;
            }
            (2, Value::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Value::Varint(3)) => piece.kind = PieceKind::Control,
            (3, Value::Varint(4)) => piece.kind = PieceKind::UserDefined,
            _ => {}
        }
    }
    Ok(piece)
}

/// Checks the options of the training, and returns the number of pieces in them, or 0.
fn check_trainer(bytes: &[u8]) -> Result<u64, String> {
    let (mut fields, mut pieces) = (Fields(bytes), 0);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (3, Value::Varint(kind)) if kind != UNIGRAM => {
                return Err(format!("it is a sentencepiece model of type {kind}, not a Unigram model"));
            }
            (4, Value::Varint(count)) => pieces = count,
            _ => {}
        }
    }
    Ok(pieces)
}

/// A protobuf value, by its wire type.
enum Value<'a> {
    Varint(u64),
    Fixed64,
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// The remaining fields of a protobuf message.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed64)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(usize::try_from(length).unwrap_or(usize::MAX))?)
            }
            5 => {
                Value::Fixed32(self.take(4)?.iter().rev().fold(0, |bits, &byte| bits << 8 | u32::from(byte)))
            }
            wire_type => return Err(format!("it is not a sentencepiece model (wire type {wire_type})")),
        };
        Ok(Some((tag >> 3, value)))
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("it is not a sentencepiece model (a number has more than 64 bits)".into())
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("it ends in the middle of a field")?;
        self.0 = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encodes a field with a length prefix.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
    }

    #[test]
    fn reads_pieces_and_charsmap_and_skips_the_rest() {
        let piece = [field(1, "▁a".as_bytes()), vec![2 << 3 | 5], (-1.5f32).to_le_bytes().to_vec()].concat();
        let control = [field(1, b"</s>"), vec![3 << 3, 3]].concat();
        let unknown = [vec![9 << 3 | 1], vec![0; 8], vec![10 << 3, 0xff, 0x01]].concat();
        let bytes = [
            field(1, &piece),
            unknown,
            field(1, &control),
            field(2, &[3 << 3, 1]),
            field(3, &field(2, b"map")),
        ]
        .concat();
        let expected = Model {
            pieces: vec![
                Piece { text: "▁a".into(), score: -1.5, kind: PieceKind::Normal },
                Piece { text: "</s>".into(), score: 0.0, kind: PieceKind::Control },
            ],
            charsmap: b"map".to_vec(),
        };
        assert_eq!(Model::parse(&bytes), Ok(expected));
        // Truncated anywhere, the file is refused.
        for end in 0..bytes.len() {
            assert!(Model::parse(&bytes[..end]).is_err(), "{end}");
        }
        let few = [&field(1, &piece)[..], &field(2, &[3 << 3, 1, 4 << 3, 7]), &field(3, b"")].concat();
        assert_eq!(Model::parse(&few), Err("it has only 1 of 7 pieces: it was cut".into()));
        assert_eq!(Model::parse(&bytes[..piece.len()]), Err("it ends in the middle of a field".into()));
    }

    #[test]
    fn refuses_other_models() {
        let error = |bytes: &[u8]| Model::parse(bytes).unwrap_err();
        assert_eq!(error(b""), "it contains no sentencepiece vocabulary");
        assert_eq!(
            error(&field(2, &[3 << 3, 2])),
            "it is a sentencepiece model of type 2, not a Unigram model"
        );
        assert_eq!(error(b"version https://git-lfs"), "it is not a sentencepiece model (wire type 6)");
        assert_eq!(error(&[0xff; 12]), "it is not a sentencepiece model (a number has more than 64 bits)");
        assert_eq!(error(&field(1, &field(1, &[0xc3]))), "a piece is not UTF-8");
        // A length near 2^64 must not wrap around.
        assert_eq!(
            error(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
            "it ends in the middle of a field"
        );
    }
}

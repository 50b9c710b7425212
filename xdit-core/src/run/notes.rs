//! Events as bytes, for other processes.
//!
//! A note is a length, as many bytes of JSON, and the values of tensors and pictures behind it. Times are on the clock
//! that the processes share.

use std::time::{Duration, Instant};

use burn::tensor::TensorData;
use serde::{Deserialize, Serialize};
use xdit_comm::{Operation, Processes};

use crate::error::{Error, Result};
use crate::link::{Count, Traffic, Wait};
use crate::picture::Picture;
use crate::run::observer::{Completed, Event, Phase, Step};
use crate::run::preview::Glimpse;
use crate::run::record::{RankReport, Span, Times};

/// What one process tells another during a job.
#[derive(Debug)]
pub enum Note {
    /// An event of its ranks.
    Event(Event),
    /// Its ranks are done; from the first process, the ranks of all processes are.
    Done,
}

/// The JSON of a note.
#[derive(Serialize, Deserialize)]
enum Head {
    Begin(Part, i64),
    End(Part, i64),
    Step(Part, usize, usize, i64),
    Warning(String),
    /// The picture, the finished steps, the first token, and the shape of the values.
    Glimpse(usize, usize, usize, [usize; 3]),
    /// The shape of latents, and the width and height of each frame.
    Completed(usize, Vec<usize>, Vec<[usize; 2]>),
    Rank(Box<Report>),
    Done,
}

/// A phase of a picture. The first process loads text encoders and reports all loading.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum Part {
    Encode,
    Denoise(usize),
    Decode(usize),
}

/// A [`RankReport`] with texts of its own and operations by index.
#[derive(Serialize, Deserialize)]
struct Report {
    rank: usize,
    began: i64,
    times: Times,
    counts: Vec<(String, usize, Count, Duration)>,
    parameter_bytes: u64,
    peak_kv_bytes: u64,
    spans: Vec<Span>,
    waits: Vec<(String, usize, Duration, Duration, u64)>,
}

/// The bytes of `note`; `None` for an event that only the first process has.
pub fn encode(note: &Note, processes: &Processes) -> Option<Vec<u8>> {
    let at = |instant: &Instant| processes.shared_time(*instant);
    let mut values = Vec::new();
    let head = match note {
        Note::Done => Head::Done,
        Note::Event(Event::Begin(phase, time)) => Head::Begin(part(*phase)?, at(time)),
        Note::Event(Event::End(phase, time)) => Head::End(part(*phase)?, at(time)),
        Note::Event(Event::Step(Step { phase, done, of }, time)) => {
            Head::Step(part(*phase)?, *done, *of, at(time))
        }
        Note::Event(Event::Warning(message)) => Head::Warning(message.clone()),
        Note::Event(Event::Glimpse(Glimpse { image, done, tokens, latents })) => {
            push(&mut values, latents);
            let shape = latents.shape().to_vec().try_into().expect("tokens have three dimensions");
            Head::Glimpse(*image, *done, tokens.start, shape)
        }
        // Previews are made by the first process.
        Note::Event(Event::Preview(_)) => return None,
        Note::Event(Event::Completed(Completed { image, latents, frames })) => {
            push(&mut values, latents);
            frames.iter().for_each(|frame| values.extend(&frame.rgb));
            let sizes = frames.iter().map(|frame| [frame.width, frame.height]).collect();
            Head::Completed(*image, latents.shape().to_vec(), sizes)
        }
        Note::Event(Event::Rank(report)) => Head::Rank(Box::new(of_report(report, at(&report.began)))),
    };
    let head = serde_json::to_vec(&head).expect("numbers and texts have a JSON form");
    let mut bytes = (head.len() as u64).to_le_bytes().to_vec();
    bytes.extend(head);
    bytes.extend(values);
    Some(bytes)
}

/// The note in `bytes`.
///
/// # Errors
/// If they are none.
pub fn decode(bytes: &[u8], processes: &Processes) -> Result<Note> {
    let garbled = || Error::failure("another process sent a note that cannot be read");
    let at = |shared| processes.instant(shared);
    let (len, rest) = bytes.split_first_chunk().ok_or_else(garbled)?;
    let (head, values) = rest.split_at_checked(u64::from_le_bytes(*len) as usize).ok_or_else(garbled)?;
    Ok(Note::Event(match serde_json::from_slice(head).map_err(|_| garbled())? {
        Head::Done => return Ok(Note::Done),
        Head::Begin(part, time) => Event::Begin(phase(part), at(time)),
        Head::End(part, time) => Event::End(phase(part), at(time)),
        Head::Step(part, done, of, time) => Event::Step(Step { phase: phase(part), done, of }, at(time)),
        Head::Warning(message) => Event::Warning(message),
        Head::Glimpse(image, done, start, shape) => {
            let (latents, rest) = pull(values, &shape).ok_or_else(garbled)?;
            let end = start.checked_add(shape[1]).filter(|_| rest.is_empty()).ok_or_else(garbled)?;
            let latents = TensorData::new(latents, shape);
            Event::Glimpse(Glimpse { image, done, tokens: start..end, latents })
        }
        Head::Completed(image, shape, sizes) => {
            let (latents, rgb) = pull(values, &shape).ok_or_else(garbled)?;
            let mut frames = Vec::with_capacity(sizes.len().min(values.len()));
            let mut rest = rgb;
            for [width, height] in sizes {
                let bytes = width.checked_mul(height).and_then(|pixels| pixels.checked_mul(3));
                let (rgb, behind) = rest.split_at_checked(bytes.ok_or_else(garbled)?).ok_or_else(garbled)?;
                frames.push(Picture { width, height, rgb: rgb.to_vec() });
                rest = behind;
            }
            if !rest.is_empty() {
                return Err(garbled());
            }
            Event::Completed(Completed { image, latents: TensorData::new(latents, shape), frames })
        }
        Head::Rank(report) => {
            let began = at(report.began);
            Event::Rank(Box::new(to_report(*report, began).ok_or_else(garbled)?))
        }
    }))
}

/// Appends the values of `latents`.
fn push(bytes: &mut Vec<u8>, latents: &TensorData) {
    let values = latents.as_slice::<f32>().expect("latents are f32");
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

/// The values of a tensor of `shape` at the beginning of `bytes`, and the rest; `None` if there are fewer.
fn pull<'a>(bytes: &'a [u8], shape: &[usize]) -> Option<(Vec<f32>, &'a [u8])> {
    let length = shape.iter().try_fold(4, |bytes: usize, &side| bytes.checked_mul(side))?;
    let (values, rest) = bytes.split_at_checked(length)?;
    Some((values.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(), rest))
}

fn part(phase: Phase) -> Option<Part> {
    match phase {
        Phase::Load(_) => None,
        Phase::Encode => Some(Part::Encode),
        Phase::Denoise { image } => Some(Part::Denoise(image)),
        Phase::Decode { image } => Some(Part::Decode(image)),
    }
}

fn phase(part: Part) -> Phase {
    match part {
        Part::Encode => Phase::Encode,
        Part::Denoise(image) => Phase::Denoise { image },
        Part::Decode(image) => Phase::Decode { image },
    }
}

fn index(operation: Operation) -> usize {
    Operation::ALL.iter().position(|&one| one == operation).expect("the list is complete")
}

fn of_report(report: &RankReport, began: i64) -> Report {
    let RankReport { rank, times, traffic, parameter_bytes, peak_kv_bytes, spans, waits, .. } = report;
    let count = |(label, operation, count): (&str, Operation, Count)| {
        (label.to_owned(), index(operation), count, traffic.waited(label, operation))
    };
    let wait = |wait: &Wait| {
        (wait.group.to_string(), index(wait.operation), wait.begin, wait.end, wait.received_bytes)
    };
    Report {
        rank: *rank,
        began,
        times: *times,
        counts: traffic.iter().map(count).collect(),
        parameter_bytes: *parameter_bytes,
        peak_kv_bytes: *peak_kv_bytes,
        spans: spans.clone(),
        waits: waits.iter().map(wait).collect(),
    }
}

fn to_report(report: Report, began: Instant) -> Option<RankReport> {
    let Report { rank, times, counts, parameter_bytes, peak_kv_bytes, spans, waits, .. } = report;
    let mut traffic = Traffic::default();
    for (label, operation, count, waited) in counts {
        let (label, operation) = (label.into(), *Operation::ALL.get(operation)?);
        traffic.add(&label, operation, count);
        if !waited.is_zero() {
            traffic.add_wait(&label, operation, waited);
        }
    }
    let wait = |(group, operation, begin, end, received_bytes): (String, usize, _, _, _)| {
        let operation = *Operation::ALL.get(operation)?;
        Some(Wait { group: group.into(), operation, begin, end, received_bytes })
    };
    let waits = waits.into_iter().map(wait).collect::<Option<Vec<_>>>()?;
    Some(RankReport { rank, began, times, traffic, parameter_bytes, peak_kv_bytes, spans, waits })
}

#[cfg(test)]
mod tests {
    use xdit_comm::Meeting;

    use super::*;
    use crate::plan::schedule::Action;
    use crate::run::record::Activity;

    fn alone() -> Processes {
        Processes::meet(&Meeting {
            process: 0,
            processes: 1,
            host: "localhost".to_owned(),
            port: 0,
            job: String::new(),
            program: String::new(),
            own_host: "here".to_owned(),
            limit: Duration::from_secs(1),
        })
        .unwrap()
    }

    #[test]
    fn events_arrive_as_sent() {
        let (processes, now) = (alone(), Instant::now());
        let mut traffic = Traffic::default();
        let count = Count { calls: 1, payload_bytes: 2, messages: 3, sent_bytes: 4 };
        traffic.add(&"ring".into(), Operation::SendRecv, count);
        traffic.add_wait(&"ring".into(), Operation::SendRecv, Duration::from_nanos(7));
        let second = Duration::from_secs(1);
        let action = Action::Blocks { step: 1, blocks: 2..3, patches: 0..1, branches: 0..1 };
        let span = Span {
            activity: Activity::Action(action),
            image: Some(2),
            begin: Duration::ZERO,
            end: second,
            waited: Duration::from_nanos(3),
            sent_bytes: 9,
        };
        let wait = Wait {
            group: "ring".into(),
            operation: Operation::SendRecv,
            begin: Duration::ZERO,
            end: second,
            received_bytes: 8,
        };
        let report = RankReport {
            rank: 3,
            began: now,
            times: Times { load: second, ..Times::default() },
            traffic,
            parameter_bytes: 5,
            peak_kv_bytes: 6,
            spans: vec![span],
            waits: vec![wait],
        };
        let latents = TensorData::new(vec![0.5f32, f32::MIN_POSITIVE, -1.0, f32::MAX], [1, 1, 2, 2]);
        let picture = Picture { width: 2, height: 1, rgb: vec![1, 2, 3, 4, 5, 255] };
        let events = [
            Event::Begin(Phase::Denoise { image: 4 }, now),
            Event::End(Phase::Decode { image: 4 }, now),
            Event::Step(Step { phase: Phase::Denoise { image: 0 }, done: 1, of: 2 }, now),
            Event::Warning("a \"warning\"".to_owned()),
            Event::Glimpse(Glimpse {
                image: 1,
                done: 2,
                tokens: 3..5,
                latents: TensorData::new(vec![0.25f32, -1.0], [1, 2, 1]),
            }),
            Event::Completed(Completed { image: 1, latents: latents.clone(), frames: vec![picture; 2] }),
            Event::Completed(Completed { image: 1, latents, frames: Vec::new() }),
            Event::Rank(Box::new(report)),
        ];
        for event in events {
            let bytes = encode(&Note::Event(event.clone()), &processes).unwrap();
            let Note::Event(arrived) = decode(&bytes, &processes).unwrap() else { panic!("an event") };
            assert_eq!(format!("{arrived:?}"), format!("{event:?}"));
            for cut in 0..bytes.len() {
                // Cut off, a note is an error.
                assert!(decode(&bytes[..cut], &processes).is_err(), "{event:?} cut at {cut}");
            }
        }
        let done = encode(&Note::Done, &processes).unwrap();
        assert!(matches!(decode(&done, &processes).unwrap(), Note::Done));
        // Only the first process loads.
        assert!(encode(&Note::Event(Event::Begin(Phase::Load("vae"), now)), &processes).is_none());
    }
}

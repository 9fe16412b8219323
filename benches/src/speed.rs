//! How fast survey and plan are, what they take from the heap, and how large the slots are.

use crate::clock::Moment;
use crate::figures::{Counts, FirstUse, Heap, Own, Slots, Timing, median, quantile};
use crate::model::Model;
use crate::subject::{Subject, Targets, library_base};
use anyhow::{Result, ensure};
use kdetour_plan::{Plan, Refusal, Survey};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;

/// Surveys that are kept between the two clocks, so that reading them costs nothing worth telling.
const BATCH: usize = 64;

/// Builds the decoder's tables.
pub(crate) fn first_use() -> FirstUse {
    let started = Moment::now();
    let heap = allocation_counter::measure(kdetour_plan::warm_up);
    FirstUse {
        microseconds: started.elapsed().as_secs_f64() * 1e6,
        allocations: heap.count_total,
        bytes: heap.bytes_total,
    }
}

/// Everything about one file.
pub(crate) fn measure(subject: &Subject, rounds: usize) -> Result<Own> {
    let slide = if subject.kernel { 0 } else { library_base(subject.bits()) };
    let facts = subject.facts();
    let targets = subject.targets(&facts, slide);
    ensure!(!targets.all.is_empty(), "{} has no functions", subject.path.display());
    let (first, end) = subject.span();
    let model = if subject.kernel {
        Model::Kernel
    } else {
        Model::Process { bits: subject.bits(), first: first + slide, end: end + slide }
    };
    let (counts, slots) = results(&targets, model);
    Ok(Own {
        file: subject.name.clone(),
        model: if subject.kernel { "kernel" } else { "process" },
        bits: subject.bits(),
        functions: targets.all.len(),
        counts,
        timing: timing(&targets, model, rounds),
        heap: heap(&targets, model),
        slots,
    })
}

fn timing(targets: &Targets<'_>, model: Model, rounds: usize) -> Timing {
    let count = targets.all.len() as f64;
    let (mut whole, mut survey, mut plan) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds.max(1) {
        let started = Moment::now();
        both(targets, model);
        whole.push(started.elapsed().as_secs_f64());
        let (surveying, planning) = apart(targets, model);
        survey.push(surveying.as_secs_f64());
        plan.push(planning.as_secs_f64());
    }
    let best = whole.iter().copied().fold(f64::INFINITY, f64::min);
    let (whole, survey, plan) = (median(&mut whole), median(&mut survey), median(&mut plan));
    Timing {
        rounds: rounds.max(1),
        functions_per_second: count / whole,
        functions_per_second_best: count / best,
        survey_ns: survey / count * 1e9,
        plan_ns: plan / count * 1e9,
    }
}

/// Survey and plan, one after the other: what a caller does.
fn both(targets: &Targets<'_>, mut model: Model) {
    let (detour, options) = (model.detour(), model.options());
    for target in &targets.all {
        let context = targets.context(target);
        let plan = Survey::of(&target.code, &context)
            .and_then(|survey| Plan::best(&survey, &mut model, detour, options));
        let _ = black_box(plan);
    }
}

/// The same, in batches, each half by its own clock.
fn apart(targets: &Targets<'_>, mut model: Model) -> (Duration, Duration) {
    let (detour, options) = (model.detour(), model.options());
    let (mut surveying, mut planning) = (Duration::ZERO, Duration::ZERO);
    let mut surveys = Vec::with_capacity(BATCH);
    for batch in targets.all.chunks(BATCH) {
        surveys.clear();
        let started = Moment::now();
        surveys.extend(batch.iter().map(|target| Survey::of(&target.code, &targets.context(target))));
        let surveyed = Moment::now();
        for survey in surveys.iter().flatten() {
            let _ = black_box(Plan::best(survey, &mut model, detour, options));
        }
        planning += surveyed.elapsed();
        surveying += surveyed.since(started);
    }
    (surveying, planning)
}

fn heap(targets: &Targets<'_>, mut model: Model) -> Heap {
    let (detour, options) = (model.detour(), model.options());
    let (mut survey, mut plan) = ((0, 0), (0, 0));
    for target in &targets.all {
        let context = targets.context(target);
        let mut found = None;
        let heap = allocation_counter::measure(|| found = Some(Survey::of(&target.code, &context)));
        survey = (survey.0 + heap.count_total, survey.1 + heap.bytes_total);
        let Some(Ok(found)) = found else { continue };
        let heap = allocation_counter::measure(|| {
            let _ = black_box(Plan::best(&found, &mut model, detour, options));
        });
        plan = (plan.0 + heap.count_total, plan.1 + heap.bytes_total);
    }
    Heap {
        survey_allocations: survey.0,
        survey_bytes: survey.1,
        plan_allocations: plan.0,
        plan_bytes: plan.1,
    }
}

/// What comes of each function, and the sizes of the slots by shape.
fn results(targets: &Targets<'_>, mut model: Model) -> (Counts, BTreeMap<String, Slots>) {
    let (detour, options) = (model.detour(), model.options());
    let mut counts = Counts::default();
    let mut sizes: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for target in &targets.all {
        let context = targets.context(target);
        let plan = Survey::of(&target.code, &context)
            .and_then(|survey| Plan::best(&survey, &mut model, detour, options));
        match plan {
            Ok(plan) => {
                counts.accepted += 1;
                *counts.shapes.entry(plan.shape().name().to_owned()).or_default() += 1;
                sizes.entry(plan.shape().name()).or_default().push(plan.slot_bytes().len());
                sizes.entry("all").or_default().push(plan.slot_bytes().len());
            }
            Err(refusal) => {
                counts.refused += 1;
                *counts.refusals.entry(reason(&refusal)).or_default() += 1;
            }
        }
    }
    let slots = sizes.into_iter().map(|(shape, mut sizes)| {
        sizes.sort_unstable();
        let slots = Slots {
            count: sizes.len(),
            median: quantile(&sizes, 50),
            ninety: quantile(&sizes, 90),
            maximum: quantile(&sizes, 100),
        };
        (shape.to_owned(), slots)
    });
    (counts, slots.collect())
}

/// The refusal's name, with what it says besides addresses.
fn reason(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Reserved { owner, .. } => format!("{} {owner:?}", refusal.name()),
        Refusal::Unsupported { why, .. } => format!("{} {why:?}", refusal.name()),
        _ => refusal.name().to_owned(),
    }
}

"""Teacher, distilled student, Gaussian, threshold and alarms from kdjax's functions.

python examples/functional.py
"""

import jax
import optax

import kdjax

sample = kdjax.load_sample()
rows = sample.train[0].values  # [N, D]
scaler = kdjax.fit_scaler(rows[:16000], method="minmax")


def cut(part):
    """Scaled windows [M, L, D] of rows [N, D]."""
    return kdjax.windows(kdjax.apply_scaler(scaler, part), length=50, stride=10)


fit_x, val_x, cal_x = cut(rows[:16000]), cut(rows[16000:20000]), cut(rows[20000:])

teacher = kdjax.lstm_autoencoder(hidden=(64, 64))
student = kdjax.lstm_autoencoder(hidden=(16,))
tx = optax.adam(3e-3)

step = kdjax.make_teacher_step(teacher, tx)  # jitted (state, batch) -> (state, metrics)
state = kdjax.init_state(teacher.init(jax.random.key(0), fit_x), tx)
for batch in kdjax.batches(fit_x, 128, epochs=5, key=jax.random.key(1)):
    state, metrics = step(state, batch)

step = kdjax.make_student_step(
    student, tx, teacher=teacher, teacher_params=state.params, alpha=0.35
)
taught = kdjax.init_state(student.init(jax.random.key(2), fit_x), tx)
for batch in kdjax.batches(fit_x, 128, epochs=5, key=jax.random.key(3)):
    taught, metrics = step(taught, batch)

# floor: least standard deviation of a channel's residuals; ridge: added to Σ, relative.
gaussian = kdjax.fit_gaussian(
    kdjax.residuals(student, taught.params, val_x), floor=0.03, ridge=0.1
)
points = kdjax.point_scores(gaussian, kdjax.residuals(student, taught.params, cal_x))
# count: points of a window that may lie above τ without an alarm.
tau = kdjax.conformal_threshold(kdjax.window_scores(points, count=0), rate=0.01)

test = sample.test[0]
test_points = kdjax.point_scores(
    gaussian, kdjax.residuals(student, taught.params, cut(test.values))
)
alarms = kdjax.alarms(test_points, tau, count=0)  # [M] bool
labels = kdjax.windows(test.labels[:, None], length=50, stride=10).any(axis=(1, 2))
ap = kdjax.metrics.average_precision(labels, kdjax.window_scores(test_points, count=0))
print(f"τ {tau:.1f}, {int(alarms.sum())} alarms, average precision {ap:.3f}")

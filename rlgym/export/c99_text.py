"""The fixed parts of the C99 that `rlgym.export.c99` writes."""

from __future__ import annotations

HEADER = """\
/* A policy exported by rlgym: C99, no dependencies, static memory (not reentrant).
 *
 * Inputs of {name}_step, side by side as floats (whole numbers and flags too):{inputs}
 * Actions, side by side as floats:{actions}
 *
 * They are normalised: scale, offset and limits stand in the bundle's manifest.
 */
#ifndef {upper}_H
#define {upper}_H

#ifdef __cplusplus
extern "C" {{
#endif

#define {upper}_NUM_INPUTS {num_inputs}
#define {upper}_NUM_ACTIONS {num_actions}

#define {upper}_BAD_INPUT (-1)  /* an input is not finite: the action is left as it was */
#define {upper}_BAD_ACTION (-2) /* an action would not be finite: it is left as it was */

/* Forget what came before; call it before the first step of an episode. */
void {name}_reset(void);

/* Decide. Returns 0, or one of the two faults above. */
int {name}_step(const float *input, float *action);

#ifdef __cplusplus
}}
#endif

#endif
"""

SOURCE = """\
/* Written by rlgym; see {name}.h. Link with the mathematical library (-lm). */
#include "{name}.h"

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

{arrays}

{statics}

/* By its bits, because a compiler that may assume finite arithmetic deletes isfinite(). */
static int all_finite(const float *x, int n)
{{
    for (int i = 0; i < n; i++) {{
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        if ((bits & 0x7f800000u) == 0x7f800000u)
            return 0;
    }}
    return 1;
}}

{functions}
void {name}_reset(void)
{{
{reset}
}}

int {name}_step(const float *input, float *action)
{{
    if (!all_finite(input, {upper}_NUM_INPUTS))
        return {upper}_BAD_INPUT;
{body}
{check}
{finish}
    return 0;
}}
"""

DENSE = """\
static void dense(const float *w, const float *b, const float *x, float *y, int rows, int columns)
{
    for (int i = 0; i < rows; i++, w += columns) {
        float sum = 0.0f;
        for (int j = 0; j < columns; j++)
            sum += w[j] * x[j];
        y[i] = sum + b[i];
    }
}
"""

DENSE_INT8 = """\
static void dense(const signed char *w, const float *scale, const float *b, const float *x,
                  float *y, int rows, int columns)
{
    for (int i = 0; i < rows; i++, w += columns) {
        float sum = 0.0f;
        for (int j = 0; j < columns; j++)
            sum += (float)w[j] * x[j];
        y[i] = scale[i] * sum + b[i];
    }
}
"""

FUNCTIONS: dict[str, str] = {
    "normalize": """\
static void normalize(const float *x, const float *mean, const float *inv_std, float bound,
                      float *y, int n)
{
    for (int i = 0; i < n; i++) {
        float z = (x[i] - mean[i]) * inv_std[i];
        y[i] = z < -bound ? -bound : z > bound ? bound : z;
    }
}
""",
    "one_hot": """\
static void one_hot(const float *x, int first, float *y, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = *x == (float)(first + i) ? 1.0f : 0.0f;
}
""",
    "layer_norm": """\
static void layer_norm(const float *x, const float *scale, const float *shift, float *y, int n)
{
    float mean = 0.0f, variance = 0.0f;
    for (int i = 0; i < n; i++)
        mean += x[i];
    mean /= (float)n;
    for (int i = 0; i < n; i++)
        variance += (x[i] - mean) * (x[i] - mean);
    float inverse = 1.0f / sqrtf(variance / (float)n + LAYER_NORM_EPSILON);
    for (int i = 0; i < n; i++)
        y[i] = (x[i] - mean) * inverse * scale[i] + shift[i];
}
""",
    "activate_tanh": """\
static void activate_tanh(const float *x, float *y, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = tanhf(x[i]);
}
""",
    "activate_relu": """\
static void activate_relu(const float *x, float *y, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = x[i] > 0.0f ? x[i] : 0.0f;
}
""",
    "activate_elu": """\
static void activate_elu(const float *x, float *y, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = x[i] > 0.0f ? x[i] : expm1f(x[i]);
}
""",
    "activate_silu": """\
static void activate_silu(const float *x, float *y, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = x[i] * (0.5f * tanhf(0.5f * x[i]) + 0.5f);
}
""",
    "gru": """\
static void gru(const float *x, const float *h, const float *state, float *next, int n)
{
    for (int i = 0; i < n; i++) {
        float r = 0.5f * tanhf(0.5f * (x[i] + h[i])) + 0.5f;
        float z = 0.5f * tanhf(0.5f * (x[n + i] + h[n + i])) + 0.5f;
        float new = tanhf(x[2 * n + i] + r * h[2 * n + i]);
        next[i] = (1.0f - z) * new + z * state[i];
    }
}
""",
    "lstm": """\
static void lstm(const float *x, const float *h, const float *state, float *next, int n)
{
    for (int i = 0; i < n; i++) {
        float in = 0.5f * tanhf(0.5f * (x[i] + h[i])) + 0.5f;
        float keep = 0.5f * tanhf(0.5f * (x[n + i] + h[n + i])) + 0.5f;
        float new = tanhf(x[2 * n + i] + h[2 * n + i]);
        float out = 0.5f * tanhf(0.5f * (x[3 * n + i] + h[3 * n + i])) + 0.5f;
        float cell = keep * state[n + i] + in * new;
        next[i] = out * tanhf(cell);
        next[n + i] = cell;
    }
}
""",
    "clip": """\
static void clip(const float *x, const float *low, const float *high, float *y, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = x[i] < low[i] ? low[i] : x[i] > high[i] ? high[i] : x[i];
}
""",
    "choose": """\
/* The largest logit among what the flags allow; where they allow nothing, among all. */
static int choose(const float *logits, const float *flags, int n)
{
    int best = -1;
    for (int pass = 0; best < 0; pass++)
        for (int i = 0; i < n; i++)
            if ((pass || !flags || flags[i] != 0.0f) && (best < 0 || logits[i] > logits[best]))
                best = i;
    return best;
}
""",
    "switches": """\
static void switches(const float *x, float *y, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = x[i] > 0.0f ? 1.0f : 0.0f;
}
""",
}
"""Name of a function in C -> its text; only those that are called are written."""

TEST = """\
/* Written by rlgym: does {name} compute here what it computed in the lab? Exit status 0: yes. */
#include "{name}.h"

#include <math.h>
#include <stdio.h>
#include <stdint.h>
#include <string.h>

#define PAIRS {pairs}

{arrays}

int main(void)
{{
    float action[{upper}_NUM_ACTIONS] = {{0}}, broken[{upper}_NUM_INPUTS];
    float worst = 0.0f;
    for (int i = 0; i < PAIRS; i++) {{
        {name}_reset();
        if ({name}_step(golden_input + i * {upper}_NUM_INPUTS, action) != 0) {{
            printf("pair %d is refused\\n", i);
            return 1;
        }}
        for (int j = 0; j < {upper}_NUM_ACTIONS; j++) {{
            float error = fabsf(action[j] - golden_action[i * {upper}_NUM_ACTIONS + j]);
            if (error > worst)
                worst = error;
        }}
    }}
    uint32_t nan_bits = 0x7fc00000u;
    memcpy(broken, golden_input, sizeof broken);
    memcpy(broken, &nan_bits, sizeof nan_bits);
    int fault = {name}_step(broken, action);
    printf("worst error %.9g, NaN gives %d\\n", (double)worst, fault);
    return !(worst <= {tolerance}) || fault != {upper}_BAD_INPUT;
}}
"""

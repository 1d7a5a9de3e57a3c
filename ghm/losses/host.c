/* The passes of GHM-C and GHM-R over float32 values in the memory of a CPU, which `ghm/losses/host.py` compiles and calls.
 *
 * Values lie in rows, and `length` says how many of them are of each population, in order. The slot of a value is its
 * unit region, from 0: `bins` where its norm is 1, and `none` where it is in no region, being ignored or NaN.
 *
 * All that leads to a slot or to a gradient is rounded step by step as IEEE 754 says, and so is that of plain PyTorch
 * bit for bit: a compiler must not contract a product and a sum. Loops are short and over parts that stay in the nearest
 * cache, so that it finds vectors in them.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

/* Tables that examples use in turn: mostly one is in the region of the one before it, and would wait for it. */
enum { SLOTS = 128, TABLES = 8, PART = 256 };

static inline int64_t part_of(int64_t left)
{
    return left < PART ? left : PART;
}

static void find_slots(const float *norm, int64_t size, int bins, int none, const float *edge, int8_t *slot)
{
    for (int64_t i = 0; i < size; i++)
        slot[i] = norm[i] == norm[i] ? (int8_t)(int)(norm[i] * (float)bins) : (int8_t)none;
    if (edge) /* where the product is not always in the region that lies between its edges */
        for (int64_t i = 0; i < size; i++)
            if (slot[i] != none) {
                slot[i] -= norm[i] < edge[slot[i]];
                slot[i] += norm[i] >= edge[slot[i] + 1];
            }
}

static void add_counts(const int8_t *slot, const int64_t *length, int64_t populations, int bins, int64_t *count)
{
    for (int64_t l = 0; l < populations; slot += length[l++], count += bins) {
        int64_t found[TABLES][SLOTS] = {{0}}, i = 0;
        for (; i + TABLES <= length[l]; i += TABLES)
            for (int table = 0; table < TABLES; table++)
                found[table][slot[i + table]]++;
        for (; i < length[l]; i++)
            found[0][slot[i]]++;
        for (int table = 0; table < TABLES; table++) {
            for (int region = 0; region < bins; region++)
                count[region] += found[table][region];
            count[bins - 1] += found[table][bins];
        }
    }
}

static void look_up(const int8_t *slot, int64_t size, const float *factor, int bins, float *found)
{
    float of_slot[SLOTS] = {0};
    memcpy(of_slot, factor, bins * sizeof(float));
    of_slot[bins] = factor[bins - 1];
    for (int64_t i = 0; i < size; i++)
        found[i] = of_slot[slot[i]];
}

static double sum_of(const float *value, int64_t size)
{
    double lane[TABLES] = {0}, total = 0;
    int64_t i = 0;
    for (; i + TABLES <= size; i += TABLES)
        for (int k = 0; k < TABLES; k++)
            lane[k] += value[i + k];
    for (; i < size; i++)
        total += value[i];
    for (int k = 0; k < TABLES; k++)
        total += lane[k];
    return total;
}

/* Writes the places of positives, and their logits with the other sign. Returns how many there are. */
int64_t positives(const float *logit, const int64_t *label, int64_t rows, int64_t columns, int64_t *place,
                  float *opposite)
{
    int64_t number = 0;
    for (int64_t row = 0; row < rows; row++)
        if (label[row] >= 0 && label[row] < columns) {
            place[number] = row * columns + label[row];
            opposite[number] = -logit[place[number]];
            number++;
        }
    return number;
}

/* Adds to `count`, and writes slots, places of positives, and their logits with the other sign; returns how many places.
 * `norm` holds probabilities; 1 - p takes the place of a positive's. */
int64_t ghm_c_count(const float *logit, float *norm, const int64_t *label, const float *weight, int64_t rows,
                    int64_t columns, const int64_t *length, int64_t populations, int bins, int none, const float *edge,
                    int8_t *slot, int64_t *count, int64_t *place, float *opposite)
{
    int64_t number = positives(logit, label, rows, columns, place, opposite);
    for (int64_t k = 0; k < number; k++)
        norm[place[k]] = 1 - norm[place[k]];
    find_slots(norm, rows * columns, bins, none, edge, slot);
    for (int64_t row = 0; row < rows; row++)
        if (!(weight[row] > 0))
            memset(slot + row * columns, none, columns);
    add_counts(slot, length, populations, bins, count);
    return number;
}

/* Moves `average` and `mass`, where they are, by the counts of each population in turn, and writes the factors of its
 * regions: what `HarmonisedLoss.factors` says. In the mean, where `total` plays no part, `scale` takes its place. */
void factors(const int64_t *count, const float *total, int64_t populations, int bins, float *average, float *mass,
             float momentum, float gain, float smoothing, float scale, int valid, int mean, float *factor)
{
    for (int64_t l = 0; l < populations; l++, count += bins, factor += bins) {
        int64_t occupied = 0, examples = 0;
        for (int k = 0; k < bins; k++)
            occupied += count[k] > 0, examples += count[k];
        float regions = (float)(valid ? occupied : bins), all = total ? total[l] : (float)examples;
        all = all < 1 ? 1 : all; /* NaN stays */
        for (int k = 0; k < bins; k++) {
            float density = (float)count[k];
            factor[k] = 0;
            if (!count[k])
                continue;
            if (average)
                density = average[k] = momentum * average[k] + gain * density;
            if (mass) {
                mass[k] = momentum * mass[k] + gain;
                density /= mass[k] < gain ? gain : mass[k];
            }
            density = (density + smoothing) * regions;
            factor[k] = mean ? scale / density : scale * (all / density);
        }
    }
}

/* -log(1 - p), p = sigmoid(logit), as 2 atanh(q / (2 - q)) with q = min(p, 1 - p), which is at most 1/2; and the logit
 * on top where that is not p. What the series leaves out is 10^-8 of it. */
static inline float cross_entropy(float logit, float p)
{
    float q = p > 0.5f ? 1 - p : p, s = q / (2 - q), t = s * s;
    float series = 1 + t * (1 / 3.f + t * (1 / 5.f + t * (1 / 7.f + t * (1 / 9.f + t * (1 / 11.f + t * (1 / 13.f))))));
    return 2 * s * series + (p > 0.5f ? logit : 0);
}

/* Adds to `sum` cross entropy times the factor of its slot, by populations, rounds that to `loss`, and writes the derivative by each logit.
 * `opposite` is 1 - p of each positive, which as a difference would have lost digits. */
void ghm_c_loss_and_gradient(const float *logit, const float *p, const int8_t *slot, const int64_t *place,
                             const float *opposite, int64_t number, const int64_t *length, int64_t populations,
                             const float *factor, int bins, double *sum, float *loss, float *restrict gradient)
{
    float own[PART], value[PART];
    int64_t first = 0, end = 0, k = 0, size;
    for (int64_t l = 0; l < populations; l++, factor += bins) {
        for (end += length[l]; first < end; first += size) {
            size = part_of(end - first);
            look_up(slot + first, size, factor, bins, own);
            for (int64_t i = 0; i < size; i++) {
                gradient[first + i] = p[first + i] * own[i];
                value[i] = cross_entropy(logit[first + i], p[first + i]) * own[i];
            }
            for (; k < number && place[k] < first + size; k++) {
                int64_t i = place[k] - first;
                gradient[place[k]] = -opposite[k] * own[i];
                value[i] = cross_entropy(-logit[place[k]], opposite[k]) * own[i];
            }
            sum[l] += sum_of(value, size);
        }
        loss[l] = (float)sum[l];
    }
}

/* Adds to `count`, and writes slots. `root` is sqrt(d^2 + mu^2) of each difference d. */
void ghm_r_count(const float *pred, const float *target, const float *root, const float *weight, const int64_t *length,
                 int64_t populations, int bins, int none, const float *edge, int8_t *slot, int64_t *count)
{
    float norm[PART];
    int64_t all = 0, size;
    for (int64_t l = 0; l < populations; l++)
        all += length[l];
    for (int64_t first = 0; first < all; first += size) {
        size = part_of(all - first);
        for (int64_t i = 0; i < size; i++)
            norm[i] = fabsf((pred[first + i] - target[first + i]) / root[first + i]);
        find_slots(norm, size, bins, none, edge, slot + first);
        for (int64_t i = 0; i < size; i++)
            slot[first + i] = weight[first + i] > 0 ? slot[first + i] : (int8_t)none;
    }
    add_counts(slot, length, populations, bins, count);
}

/* Adds to `sum` ASL1 times the factor of its slot, by populations, rounds that to `loss`, and writes the derivative by
 * each coordinate. */
void ghm_r_loss_and_gradient(const float *pred, const float *target, const float *root, const int8_t *slot,
                             const int64_t *length, int64_t populations, const float *factor, int bins, float mu,
                             double *sum, float *loss, float *restrict gradient)
{
    float own[PART], value[PART];
    int64_t first = 0, end = 0, size;
    for (int64_t l = 0; l < populations; l++, factor += bins) {
        for (end += length[l]; first < end; first += size) {
            size = part_of(end - first);
            look_up(slot + first, size, factor, bins, own);
            for (int64_t i = 0; i < size; i++) {
                value[i] = (root[first + i] - mu) * own[i];
                gradient[first + i] = (pred[first + i] - target[first + i]) / root[first + i] * own[i];
            }
            sum[l] += sum_of(value, size);
        }
        loss[l] = (float)sum[l];
    }
}

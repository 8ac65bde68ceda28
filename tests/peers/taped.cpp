// Four programs on the tapes of CppAD (-DCPPAD) or ADOL-C (-DADOLC): prints JSON, a line each.
// The programs are those of gradbook.roads.problems; the determinant adds and subtracts its terms,
// where gradbook multiplies them by a sign.
#ifdef CPPAD
#include <cppad/cppad.hpp>
typedef CppAD::AD<double> Active;
#else
#include <adolc/adolc.h>
typedef adouble Active;
#endif
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

using std::vector;
typedef vector<double> Numbers;
typedef vector<Active> Actives;

static double now()
{
    auto t = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double>(t).count();
}

static Active minors(const Actives &x, size_t n, size_t row, const vector<size_t> &columns)
{
    if (columns.size() == 1) return x[row * n + columns[0]];
    Active det = 0.0;
    for (size_t j = 0; j < columns.size(); j++) {
        vector<size_t> rest(columns);
        rest.erase(rest.begin() + j);
        const Active term = x[row * n + columns[j]] * minors(x, n, row + 1, rest);
        if (j % 2) det = det - term; else det = det + term;
    }
    return det;
}

static Actives determinant(const Actives &x)
{
    const size_t n = std::lround(std::sqrt(double(x.size())));
    vector<size_t> columns(n);
    for (size_t j = 0; j < n; j++) columns[j] = j;
    return {minors(x, n, 0, columns)};
}

static Actives ode(const Actives &x)
{
    const size_t n = x.size(), steps = 100;
    const double h = 1.0 / steps;
    auto move = [&](const Actives &y) {
        Actives d(n);
        d[0] = x[0];
        for (size_t i = 1; i < n; i++) d[i] = x[i] * y[i - 1];
        return d;
    };
    auto along = [&](const Actives &y, const Actives &k, double h) {
        Actives z(n);
        for (size_t i = 0; i < n; i++) z[i] = y[i] + h * k[i];
        return z;
    };
    Actives y(n);
    for (auto &v : y) v = 0.0;
    for (size_t s = 0; s < steps; s++) {
        const Actives k1 = move(y), k2 = move(along(y, k1, h / 2)), k3 = move(along(y, k2, h / 2));
        const Actives k4 = move(along(y, k3, h));
        for (size_t i = 0; i < n; i++)
            y[i] = y[i] + h / 6 * (k1[i] + 2.0 * k2[i] + 2.0 * k3[i] + k4[i]);
    }
    return y;
}

static const double c = 0.125;

static Actives lax_wendroff(const Actives &x)
{
    Actives q = x, flux(x.size() - 1);
    for (int step = 0; step < 2000; step++) {
        for (size_t i = 0; i + 1 < q.size(); i++)
            flux[i] = 0.5 * c * (q[i] + q[i + 1] + c * (q[i] - q[i + 1]));
        for (size_t i = 1; i + 1 < q.size(); i++) q[i] = q[i] + (flux[i - 1] - flux[i]);
        q[0] = q[q.size() - 2];
        q[q.size() - 1] = q[1];
    }
    return q;
}

static Actives toon(const Actives &x)
{
    Actives q = x, flux(x.size() - 1);
    for (int step = 0; step < 200; step++) {
        for (size_t i = 0; i + 1 < q.size(); i++)
            flux[i] = (exp(c * log(q[i] / q[i + 1])) - 1.0) * q[i] * q[i + 1] / (q[i] - q[i + 1]);
        for (size_t i = 1; i + 1 < q.size(); i++) q[i] = q[i] + (flux[i - 1] - flux[i]);
        q[0] = q[q.size() - 2];
        q[q.size() - 1] = q[1];
    }
    return q;
}

static double median(Numbers v)
{
    std::sort(v.begin(), v.end());
    return v[v.size() / 2];
}

static void report(const char *name, size_t recorded, size_t left, double record_s,
                   double shorten_s, const Numbers &forward, const Numbers &reverse,
                   const Numbers &g)
{
    double total = 0;
    for (double s : g) total += s;
    std::printf("{\"case\": \"%s\", \"recorded\": %zu, \"left\": %zu, \"record_s\": %.6g, "
                "\"shorten_s\": %.6g, \"forward_s\": %.6g, \"reverse_s\": %.6g, "
                "\"first_slope\": %.17g, \"sum_of_slopes\": %.17g}\n",
                name, recorded, left, record_s, shorten_s, median(forward), median(reverse), g[0],
                total);
}

static void run(const char *name, Actives (*f)(const Actives &), const Numbers &x, int repeat)
{
    Numbers forward, reverse, g(x.size());
    const double start = now();
#ifdef CPPAD
    Actives in(x.begin(), x.end());
    CppAD::Independent(in);
    Actives out = f(in);
    CppAD::ADFun<double> tape;
    tape.Dependent(in, out);
    tape.check_for_nan(false);
    const double recorded = now();
    const size_t before = tape.size_op();
    tape.optimize();
    const double shortened = now();
    const size_t left = tape.size_op();
    const Numbers w(out.size(), 1.0);
    for (int k = 0; k < repeat; k++) {
        const double a = now();
        tape.Forward(0, x);
        const double b = now();
        g = tape.Reverse(1, w);
        forward.push_back(b - a);
        reverse.push_back(now() - b);
    }
#else
    static int tag = 0;
    tag++;
    trace_on(tag, 1);
    Actives in(x.size());
    for (size_t i = 0; i < x.size(); i++) in[i] <<= x[i];
    Actives out = f(in);
    Numbers y(out.size());
    for (size_t i = 0; i < y.size(); i++) out[i] >>= y[i];
    trace_off();
    const double recorded = now(), shortened = recorded;
    size_t facts[STAT_SIZE];
    tapestats(tag, facts);
    const size_t before = facts[NUM_OPERATIONS], left = before;
    Numbers w(y.size(), 1.0);
    for (int k = 0; k < repeat; k++) {
        const double a = now();
        zos_forward(tag, int(y.size()), int(x.size()), 1, x.data(), y.data());
        const double b = now();
        fos_reverse(tag, int(y.size()), int(x.size()), w.data(), g.data());
        forward.push_back(b - a);
        reverse.push_back(now() - b);
    }
#endif
    report(name, before, left, recorded - start, shortened - recorded, forward, reverse, g);
}

int main(int count, char **given)
{
    const int repeat = count > 1 ? std::atoi(given[1]) : 21;
    Numbers matrix(64), rates(10), hill(100);
    for (int i = 0; i < 64; i++)
        matrix[i] = (1.0 + 0.5 * std::sin((i + 1.0) * (i + 1.0))) / 8 + (i % 9 == 0);
    for (int i = 0; i < 10; i++) rates[i] = 1.0 + 0.5 * std::sin((i + 1.0) * (i + 1.0));
    for (int i = 0; i < 100; i++) hill[i] = 0.5 + 0.5 * std::sin(2 * M_PI * i / 99) + 1e-4;
    run("det by minors", determinant, matrix, 10 * repeat);
    run("Runge-Kutta", ode, rates, 10 * repeat);
    run("Lax-Wendroff", lax_wendroff, hill, repeat);
    run("Toon", toon, hill, repeat);
}

// What CppAD (-DCPPAD), ADOL-C (-DADOLC) or Adept (-DADEPT) does in the cases that chapter 36b
// tells of: prints words.
#include <cmath>
#include <cstdio>
#include <vector>

template <typename T> static T energy(const std::vector<T> &x)
{
    using std::exp;
    T total = 0.0;
    for (size_t k = 0; k < x.size(); k++)
        total = total + (x[k] - double(k)) * (x[k] - double(k));
    return exp(-total);
}

#ifdef CPPAD
#include <cppad/cppad.hpp>
typedef CppAD::AD<double> Active;

static void complain(bool, int, const char *, const char *, const char *) { throw 1; }

static void count()
{
    std::vector<Active> x(1000, 0.5), y(1);
    CppAD::Independent(x);
    y[0] = energy(x);
    std::printf("operators %zu\n", CppAD::ADFun<double>(x, y).size_op());
}

int main()
{
    std::vector<Active> x(1, 3.0), y(1);
    CppAD::Independent(x);
    if (x[0] > 2.0) y[0] = x[0] * x[0]; else y[0] = -x[0];
    CppAD::ADFun<double> f(x, y);
    std::printf("value %g ", f.Forward(0, std::vector<double>(1, -2.0))[0]);
    std::printf("changed %zu ", f.compare_change_number());
    CppAD::ErrorHandler handler(complain);
    try {
        f.Reverse(1, std::vector<double>(2));  // one weight too many
        std::printf("nothing said\n");
    } catch (int) {
        std::printf("refused\n");
    }
    count();
}
#elif defined(ADEPT)
#include <adept.h>

int main()
{
    adept::Stack stack;
    std::vector<adept::adouble> x(1000, 0.5);
    stack.new_recording();
    adept::adouble y = energy(x);
    std::printf("statements %d slopes %d ", (int)stack.n_statements(), (int)stack.n_operations());
    x.assign(2, 3.0);
    stack.new_recording();
    y = x[0] * x[1];
    for (int sweep = 0; sweep < 2; sweep++) {
        stack.clear_gradients();
        y.set_gradient(1.0);
        stack.compute_adjoint();
        std::printf("slope %g ", x[0].get_gradient());
    }
    stack.clear_gradients();
    x[1].set_gradient(1.0);
    stack.compute_tangent_linear();
    std::printf("forward %g\n", y.get_gradient());
}
#else
#include <adolc/adolc.h>

static void loop(short tag, int rounds)
{
    double out;
    trace_on(tag);
    {
        adouble s;
        s <<= 0.5;
        for (int i = 0; i < rounds; i++) s = s * s * 0.5;
        s >>= out;
    }
    trace_off();
}

static void count(short tag)
{
    double out;
    trace_on(tag);
    {
        std::vector<adouble> x(1000);
        for (auto &number : x) number <<= 0.5;
        adouble y = energy(x);
        y >>= out;
    }
    trace_off();
}

int main()
{
    double out, point = -2.0, slope = 99.0;
    trace_on(1);
    {
        adouble x, y;
        x <<= 3.0;
        if (x > 2.0) y = x * x; else y = -x;
        y >>= out;
    }
    trace_off();
    int code = gradient(1, 1, &point, &slope);
    std::printf("code %d slope %g ", code, slope);
    size_t counts[STAT_SIZE];
    loop(2, 1000);
    tapestats(2, counts);
    std::printf("slots %zu disk %zu ", counts[NUM_MAX_LIVES], counts[OP_FILE_ACCESS]);
    loop(3, 1000000);
    tapestats(3, counts);
    std::printf("disk %zu ", counts[OP_FILE_ACCESS]);
    count(4);
    tapestats(4, counts);
    std::printf("operations %zu\n", counts[NUM_OPERATIONS]);
}
#endif

# Figures: one module each, drawn from tables.
def figure_tables(number):
    """The tables that a figure is drawn from, by name."""
    return {
        name: f"{root}/{'screen' if name == 'screen' else 'tables'}/{name}.parquet"
        for name in FIGURE_TABLES[number]
    }


def figure_options(wildcards, input):
    """--TABLE FILE of each table."""
    return [f"--{name} {path}" for name, path in input.items()]


for number in figures:

    rule:
        name:
            f"fig{number}"
        input:
            **figure_tables(number),
        output:
            report(
                f"{root}/figures/fig{number}.svg",
                caption=f"../report/fig{number}.rst",
                category="Figures",
                labels={"figure": f"Figure {number}"},
            ),
            f"{root}/figures/fig{number}.pdf",
            f"{root}/figures/fig{number}.png",
        log:
            f"{root}/logs/figures/fig{number}.log",
        benchmark:
            f"{root}/benchmarks/figures/fig{number}.tsv"
        conda:
            ENV
        threads: 1
        resources:
            mem_mb=4000,
            runtime=15,
        params:
            **stage(partial(stages.figure, number)),
            module=f"figures.fig{number}",
            tables=figure_options,
        shell:
            "python -m perfmis {params.module} --settings {params.settings:q} --fingerprint {params.fingerprint}"
            " {params.tables} --output {output[1]} > {log} 2>&1"
